"""Which documents of a corpus stay: good ones, each once, and none that evaluations are made of.

Two passes in the same order, so that memory is 100 bytes a document and no text is kept: the first
judges every document by itself and hashes it, the second writes those that stay.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from trainer.data.audit_copies import NearCopies
from trainer.data.contamination import Evaluations, words_of
from trainer.data.quality import fault_of

Why = Literal["quality", "copy", "near copy", "contaminated"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked for; everything but exact copies is off where it is not asked for."""

    quality: bool = False
    near_copies: bool = False
    evaluations: Evaluations | None = None
    keep_contaminated: bool = False  # they are counted and stay


@dataclass(frozen=True)
class Gone:
    """`detail`: the rule that was broken, or the number of the document that stays instead."""

    number: int
    why: Why
    detail: str


@dataclass
class Verdict:
    documents: int = 0
    contaminated: int = 0
    gone: dict[int, Gone] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        return self.documents - len(self.gone)

    def counts(self) -> dict[str, int]:
        return dict(Counter(one.why for one in self.gone.values()))

    def rules(self) -> dict[str, int]:
        broken = (one.detail for one in self.gone.values() if one.why == "quality")
        return dict(Counter(broken).most_common())


def judged(documents: Iterable[str], wanted: Wanted) -> Verdict:
    """The first pass."""
    verdict, first = Verdict(), dict[bytes, int]()
    near, of_near = NearCopies(), list[int]()
    for number, text in enumerate(documents):
        verdict.documents += 1
        found = _by_itself(number, text, wanted, verdict) or _copy(number, text, first)
        if found is not None:
            verdict.gone[number] = found
        elif wanted.near_copies:
            near.add(words_of(text))
            of_near.append(number)
    for number, earlier in near.again() if of_near else ():
        said = str(of_near[earlier])
        verdict.gone[of_near[number]] = Gone(of_near[number], "near copy", said)
    return verdict


def kept(documents: Iterable[str], verdict: Verdict) -> Iterator[str]:
    """The second pass: the same documents in the same order."""
    for number, text in enumerate(documents):
        if number not in verdict.gone:
            yield text


def _by_itself(number: int, text: str, wanted: Wanted, verdict: Verdict) -> Gone | None:
    if wanted.quality and (fault := fault_of(text)) is not None:
        return Gone(number, "quality", fault)
    if wanted.evaluations is not None and wanted.evaluations.shares(text):
        verdict.contaminated += 1
        if not wanted.keep_contaminated:
            return Gone(number, "contaminated", "")
    return None


def _copy(number: int, text: str, first: dict[bytes, int]) -> Gone | None:
    """Copies are texts that differ in spaces alone."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    earlier = first.setdefault(digest, number)
    return None if earlier == number else Gone(number, "copy", str(earlier))
