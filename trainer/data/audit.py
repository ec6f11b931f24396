"""The label audit: pure counts over encoded examples, and what they say about training on them.

Examples go in one by one, those to train on and those held out; a report comes out. What an
encoding alone can know (an answer in no window) comes with the example as `notes`.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.batch import CHOSEN, IGNORED, REJECTED
from trainer.data.audit_copies import Copies, NearCopies
from trainer.data.audit_kinds import finding
from trainer.data.encodings.base import EXAMPLES
from trainer.data.encodings.example import Array, Example
from trainer.records.audit import MOST_PLACES, AuditReport, Finding
from trainer.records.token_store import Split

SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is audited. `name`: of exactly these examples. Ids are None where a tokenizer has none.

    `vocab_size`: of the model. `terms`: of the encoding. `labels`: names of classes or tags.
    """

    name: str
    terms: str
    labels: tuple[str, ...]
    vocab_size: int
    begin_id: int | None
    end_ids: frozenset[int]
    unknown_id: int | None

    @property
    def speaks(self) -> bool:
        """Whether labels are ids that the model is to say; else they are numbers of classes."""
        return self.terms != EXAMPLES and not self.labels


@dataclass
class _Split:
    examples: int = 0
    tokens: int = 0
    learnt: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # by powers of two
    labels: Counter[int] = field(default_factory=Counter)
    first_of_label: dict[int, str] = field(default_factory=dict)
    copies: Copies = field(default_factory=Copies)
    near: NearCopies = field(default_factory=NearCopies)
    files: dict[str, int] = field(default_factory=dict)
    places: array[int] = field(default_factory=lambda: array("q"))  # file and row of each

    def place(self, number: int) -> str:
        file, row = self.places[2 * number : 2 * number + 2]
        return f"{list(self.files)[file]} row {row}"


class Audit:
    """`near`: whether near copies are looked for: half a millisecond a row, most of the time."""

    def __init__(self, subject: Subject, *, near: bool = True) -> None:
        self._subject = subject
        self._near = near
        self._splits = {split: _Split() for split in SPLITS}
        self._found: dict[str, list[str]] = defaultdict(list)
        self._counts: Counter[str] = Counter()

    def add(self, split: Split, example: Example) -> None:
        into, arrays = self._splits[split], example.arrays
        inputs = arrays["inputs"]
        into.examples += 1
        into.tokens += len(inputs) + len(arrays.get("decoder_inputs", ()))
        into.lengths[max(1, len(inputs)).bit_length()] += 1
        asked, said = _what_is_said(arrays)
        into.copies.add(asked, said)
        if self._near:
            into.near.add(inputs)
        number = into.files.setdefault(example.file, len(into.files))
        into.places.extend((number, example.row))
        self._check_labels(into, example)
        for kind in _wrong_ids(inputs, self._subject):
            self._note(kind, example)
        for kind in example.notes:
            self._note(kind, example)
        if example.was_cut and not example.notes:
            self._note("cut", example)

    def report(self, more: Iterable[Finding] = ()) -> AuditReport:
        """`more`: what others found out, about the template or the packed rows."""
        train, held_out = self._splits["train"], self._splits["held_out"]
        all_of_them = train.examples + held_out.examples
        found = [
            finding(kind, count, of=all_of_them, places=tuple(self._found[kind]))
            for kind, count in sorted(self._counts.items())
        ]
        found += [
            *more,
            *_of_classes(train, self._subject),
            *_of_copies(train, held_out, self._near),
        ]
        in_order = sorted(found, key=lambda f: (f.severity, -f.count))  # those that refuse first
        facts: dict[str, Any] = {
            split: _facts(self._splits[split], self._subject) for split in SPLITS
        }
        return AuditReport(self._subject.name, facts, tuple(in_order))

    def _check_labels(self, into: _Split, example: Example) -> None:
        subject, arrays = self._subject, example.arrays
        for values in _class_numbers(arrays, subject):
            into.labels[values] += 1
            into.first_of_label.setdefault(values, example.place)
            if not 0 <= values < len(subject.labels):
                self._note("unknown_label", example)
        if subject.terms == EXAMPLES and "answers" not in arrays:
            into.learnt += 1
            return
        if _is_no_choice(arrays):
            self._note("same_answers", example)
        for labels in _each_answer(arrays, "labels"):
            learnt = labels != IGNORED
            into.learnt += int(learnt.sum())
            if not learnt.any():
                self._note("nothing_learnt", example)
            elif _speaks(subject, arrays) and not _ends_well(labels, learnt, subject):
                said_so = {"answer_cut", "end_missing"} & set(example.notes)
                self._note_unless(bool(said_so), "end_missing", example)

    def _note_unless(self, known: bool, kind: str, example: Example) -> None:
        if not known:
            self._note(kind, example)

    def _note(self, kind: str, example: Example) -> None:
        self._counts[kind] += 1
        if len(self._found[kind]) < MOST_PLACES:
            self._found[kind].append(example.place)


def _speaks(subject: Subject, arrays: Any) -> bool:
    return subject.speaks or "answers" in arrays


def _each_answer(arrays: Any, name: str) -> list[Array]:
    """A column of the example, cut where a pair's second answer begins."""
    if name not in arrays or "answers" not in arrays:
        return [arrays[name]] if name in arrays else []
    return [arrays[name][arrays["answers"] == number] for number in (CHOSEN, REJECTED)]


def _is_no_choice(arrays: Any) -> bool:
    if "answers" not in arrays:
        return False
    one, other = _each_answer(arrays, "inputs")
    return np.array_equal(one, other)


def _what_is_said(arrays: Any) -> tuple[Array, list[Array]]:
    """(inputs, what the example says of them): of a pair, which of its answers is preferred."""
    if "answers" not in arrays:
        return arrays["inputs"], [v for n, v in sorted(arrays.items()) if n != "inputs"]
    one, other = _each_answer(arrays, "inputs")
    if one.tobytes() <= other.tobytes():
        return np.concatenate([one, other]), [one]
    return np.concatenate([other, one]), [one]


def _ends_well(labels: Array, learnt: Any, subject: Subject) -> bool:
    """Whether every run of what is learnt ends with a token that ends a turn or a text."""
    last_of_run = learnt & ~np.append(learnt[1:], False)
    return all(label in subject.end_ids for label in labels[last_of_run].tolist())


def _wrong_ids(inputs: Array, subject: Subject) -> list[str]:
    kinds = []
    begin, unknown = subject.begin_id, subject.unknown_id
    if begin is not None and inputs[:2].tolist() == [begin, begin]:
        kinds.append("double_begin")
    if len(inputs) and not 0 <= int(inputs.min()) <= int(inputs.max()) < subject.vocab_size:
        kinds.append("beyond_vocabulary")
    if unknown is not None and 2 * int((inputs == unknown).sum()) > len(inputs):
        kinds.append("unknown_tokens")
    return kinds


def _class_numbers(arrays: Any, subject: Subject) -> list[int]:
    """Of an example: its class, its classes, or the tags of its tokens, each once."""
    if not subject.labels:
        return []
    if "classes" in arrays:
        return [int(number) for number in arrays["classes"]]
    if "targets" in arrays:
        return np.flatnonzero(arrays["targets"]).tolist()
    labels = arrays.get("labels")
    return [] if labels is None else [n for n in set(labels.tolist()) if n != IGNORED]


def _of_classes(train: _Split, subject: Subject) -> Iterable[Finding]:
    if not subject.labels or not train.examples:
        return
    numbers = range(len(subject.labels))
    names = subject.labels
    empty = [n for n in numbers if not train.labels[n]]
    if empty:
        shown = tuple(names[n] for n in empty[:MOST_PLACES])
        yield finding("empty_class", len(empty), of=len(names), places=shown)
    once = [n for n in numbers if train.labels[n] == 1]
    if once:
        places = tuple(f"{names[n]} in {train.first_of_label[n]}" for n in once[:MOST_PLACES])
        kind = "single_example" if subject.terms == EXAMPLES else "rare_tag"
        yield finding(kind, len(once), of=len(names), places=places)
    seen = [n for n in numbers if train.labels[n]]
    if subject.terms == EXAMPLES and len(seen) == 1 and train.labels[seen[0]] == train.examples > 1:
        places = (f"{names[seen[0]]} from {train.first_of_label[seen[0]]} on",)
        yield finding("one_class", train.examples, of=train.examples, places=places)


def _of_copies(train: _Split, held_out: _Split, near: bool) -> Iterable[Finding]:
    whole, inputs = held_out.copies.within(train.copies)
    exact = {*whole, *inputs}
    close = held_out.near.within(train.near) if near else []
    close = [(one, other) for one, other in close if one not in exact]
    for kind, numbers, of in (
        ("duplicates", train.copies.repeated(), train),
        ("contradictions", train.copies.contradicting(), train),
        ("overlap", whole, held_out),
        ("same_input", inputs, held_out),
    ):
        if numbers:
            places = tuple(of.place(n) for n in numbers[:MOST_PLACES])
            yield finding(kind, len(numbers), of=of.examples, places=places)
    if close:
        pairs = [f"{held_out.place(a)} like {train.place(b)}" for a, b in close[:MOST_PLACES]]
        yield finding("near_overlap", len(close), of=held_out.examples, places=tuple(pairs))


def _facts(split: _Split, subject: Subject) -> dict[str, Any]:
    labels: Sequence[str] = subject.labels
    facts: dict[str, Any] = {"examples": split.examples, "tokens": split.tokens}
    if subject.terms != EXAMPLES:
        facts["learnt"] = split.learnt
        facts["learnt_share"] = split.learnt / split.tokens if split.tokens else 0.0
    facts["lengths"] = {f"<{1 << bits}": n for bits, n in sorted(split.lengths.items())}
    if labels:
        facts["labels"] = {name: split.labels[n] for n, name in enumerate(labels[:100])}
    return facts
