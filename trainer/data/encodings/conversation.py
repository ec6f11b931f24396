"""Messages -> ids, and which of them are learnt: through the template's own marks, or by rendering
a conversation up to each message and taking what that message adds.

Text of a user that spells a special token stays text: it cannot end a turn or begin a system's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.encodings.weights import weight_of
from trainer.data.task_tokenizer import Encoded, TaskTokenizer
from trainer.data.template import MARKS, ChatTemplate
from trainer.errors import DataError

_GUARD = "\uf8f2"  # stands within what only looks like a special token, while it is rendered
Message = Mapping[str, Any]
Place = tuple[int, int]


@dataclass(frozen=True)
class Conversation:
    """`learnt`: tokens [begin, end) of each message that is. `loose`: of those, how many begin or
    end within a token. `weights`: of each that is learnt; 1 where its message says nothing."""

    ids: list[int]
    learnt: list[Place]
    loose: int
    weights: list[float]


class Conversations:
    """`roles`: whose messages are learnt; `last`: only the last of them."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: TaskTokenizer,
        *,
        roles: Sequence[str],
        last: bool = False,
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._roles = frozenset(roles)
        self._last = last
        self._specials = tokenizer.special_texts
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encoded(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Conversation:
        """Raises: DataError if the template refuses the messages, or cannot say what is learnt."""
        safe = [_guarded(message, self._special) for message in messages]
        text, places, counts = self._places(safe, _guarded(list(tools), self._special))
        if _GUARD in text:
            places = [(_unguarded(text, a), _unguarded(text, b)) for a, b in places]
            found = self._piecewise(text)
        else:
            found = self._tokenizer.encode_rendered(text)
        spans = [_tokens_of(found, place) for place in places]
        loose = sum(
            (found.offsets[a][0], found.offsets[b - 1][1]) != place
            for (a, b), place in zip(spans, places, strict=True)
            if a < b
        )
        whole = [(span, w) for span, w in zip(spans, counts, strict=True) if span[0] < span[1]]
        return Conversation(found.ids, [span for span, _ in whole], loose, [w for _, w in whole])

    def _places(
        self, messages: list[Any], tools: list[Any]
    ) -> tuple[str, list[Place], list[float]]:
        """(the whole text, characters of every learnt message, its weight)."""
        learnt = [n for n, m in enumerate(messages) if m["role"] in self._roles]
        whole = self._template.render(messages, tools=tools)
        if self._template.marks_answers and self._roles == {"assistant"}:
            if len(whole.marked) != len(learnt):
                raise DataError(
                    f"the chat template marks {len(whole.marked)} places as generated and there "
                    f"are {len(learnt)} answers"
                )
            at = dict(zip(learnt, whole.marked, strict=True))
        else:
            wanted = learnt[-1:] if self._last else learnt
            at = {n: self._added(messages, n, tools, whole.text) for n in wanted}
        learnt = learnt[-1:] if self._last else learnt
        counts = {n: weight_of(messages[n].get("weight"), f"message {n + 1}") for n in learnt}
        learnt = [n for n in learnt if counts[n]]
        return whole.text, [at[n] for n in learnt], [counts[n] for n in learnt]

    def _added(self, messages: list[Any], number: int, tools: list[Any], whole: str) -> Place:
        """What a message adds to the text, without the header that asks for it."""
        asks = messages[number]["role"] == "assistant"
        before = ""
        if number:
            before = self._template.render(messages[:number], tools=tools, asks=asks).text
        upto = self._template.render(messages[: number + 1], tools=tools).text
        if not upto.startswith(before) or not whole.startswith(upto):
            raise DataError(
                f"the chat template writes message {number + 1} differently once the conversation "
                "goes on, so that nobody can say which tokens are learnt; take task.turns=last, "
                "or a template with {% generation %} by task.template"
            )
        added = upto[len(before) :]
        trimmed = added.rstrip()
        ends = [m.end() for m in self._special.finditer(trimmed)]
        # the line end behind an end of turn is the template's, no model is asked for it
        if ends and ends[-1] == len(trimmed):
            added = trimmed
        return len(before), len(before) + len(added)

    def _piecewise(self, text: str) -> Encoded:
        """Where a text of the user's spells a special token: only those of the template are."""
        ids: list[int] = []
        offsets: list[Place] = []
        at = 0
        for piece in re.split(f"({self._special.pattern})", text):
            if piece in self._specials:
                ids.append(self._specials[piece])
                offsets.append((at, at + len(piece)))
                at += len(piece)
                continue
            plain = piece.replace(_GUARD, "")
            found = self._tokenizer.encode(plain, special=False) if plain else None
            if found is not None:
                ids += found.ids
                offsets += [(at + a, at + b) for a, b in found.offsets]
            at += len(plain)
        nothing = [None] * len(ids)
        return Encoded(ids, [0] * len(ids), offsets, [0] * len(ids), [*nothing], was_cut=False)


def _guarded(value: Any, special: re.Pattern[str]) -> Any:
    """The value with every special token in its texts broken. Raises: DataError for our marks."""
    if isinstance(value, str):
        if any(mark in value for mark in (*MARKS, _GUARD)):
            raise DataError("it holds private-use characters U+F8F0 to U+F8F2, which mark places")
        return special.sub(lambda m: m[0][:1] + _GUARD + m[0][1:], value)
    if isinstance(value, Mapping):
        return {key: _guarded(inner, special) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(inner, special) for inner in value]
    return value


def _unguarded(text: str, place: int) -> int:
    return place - text.count(_GUARD, 0, place)


def _tokens_of(found: Encoded, place: Place) -> Place:
    """Tokens that begin within the place: one that begins before it holds what was asked."""
    inside = [n for n, (a, b) in enumerate(found.offsets) if a < b and place[0] <= a < place[1]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
