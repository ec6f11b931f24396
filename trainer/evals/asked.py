"""Held-out examples as questions: what a model reads, and what it should have said.

Shapes: T positions of one example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batch import IGNORED, ExampleBatch


@dataclass(frozen=True)
class Asked:
    """`references`: texts that are right, at least one."""

    prompt: tuple[int, ...]
    references: tuple[str, ...]


def asked_of(
    batches: Iterable[ExampleBatch], *, decode: Callable[[Sequence[int]], str]
) -> Iterator[Asked]:
    """The last answer of every example, in the order of the rows.

    References are those of the data; where an example holds none (a conversation), what its labels
    spell. An example of which nothing is learnt is no question.
    """
    for batch in batches:
        if "decoder_documents_RS" in batch.fields:
            yield from _sources_of(batch)
            continue
        documents_RT = batch.fields["documents_RT"]
        numbers = [
            (r, n) for r, row in enumerate(documents_RT) for n in range(1, int(row.max()) + 1)
        ]
        texts = batch.text or [None] * len(numbers)
        for (row, number), text in zip(numbers, texts, strict=True):
            mine_T = documents_RT[row] == number
            inputs = batch.fields["inputs_RT"][row, mine_T]
            labels = batch.fields["labels_RT"][row, mine_T]
            found = _last_answer(labels)
            if found is None:
                continue
            first, last = found
            given = _given(text)
            references = given or (decode(labels[first : last + 1].tolist()),)
            yield Asked(tuple(inputs[: first + 1].tolist()), references)


def _sources_of(batch: ExampleBatch) -> Iterator[Asked]:
    """What an encoder reads of every example; references are always of the data."""
    documents_RT = batch.fields["documents_RT"]
    numbers = [(r, n) for r, row in enumerate(documents_RT) for n in range(1, int(row.max()) + 1)]
    for (row, number), text in zip(numbers, batch.text, strict=True):
        source = batch.fields["inputs_RT"][row, documents_RT[row] == number]
        yield Asked(tuple(source.tolist()), _given(text))


def _last_answer(labels_T: torch.Tensor) -> tuple[int, int] | None:
    """First and last place of the last stretch of labels: place t says what stands at t + 1."""
    said = (labels_T != IGNORED).nonzero().flatten().tolist()
    if not said:
        return None
    first = last = said[-1]
    for place in reversed(said[:-1]):
        if place != first - 1:
            break
        first = place
    return first, last


def _given(text: Any) -> tuple[str, ...]:
    references = text.get("references") if isinstance(text, dict) else None
    return tuple(references or ())
