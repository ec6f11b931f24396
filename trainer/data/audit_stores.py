"""The audit of prepared stores: examples read back, packed rows checked, one report of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trainer.data.audit import SPLITS, Audit, Subject
from trainer.data.audit_kinds import finding
from trainer.data.encodings.base import PLACES
from trainer.data.encodings.chat import ends_of_turns
from trainer.data.encodings.example import Array, Example, notes_of
from trainer.data.example_store import ExampleSplit, ExampleStore
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.records.audit import MOST_PLACES, AuditReport, Finding
from trainer.records.example_store import ExampleManifest
from trainer.records.token_store import Split

_TOGETHER = 2048  # examples that are read at once


def audit_stores(
    stores: Sequence[ExampleStore],
    tokenizer: TaskTokenizer,
    *,
    name: str,
    near: bool = True,
    more: Sequence[Finding] = (),
) -> AuditReport:
    """Of all sources together: what is held out of one may be trained on in another.

    Raises: DataError if a store is damaged.
    """
    audit = Audit(subject_of(stores[0].manifest, tokenizer, name=name), near=near)
    for split in SPLITS:
        for store in stores:
            for example in stored_examples(store, split):
                audit.add(split, example)
    return audit.report([*more, *_of_rows(stores)])


def subject_of(manifest: ExampleManifest, tokenizer: TaskTokenizer, *, name: str) -> Subject:
    specials = tokenizer.specials
    return Subject(
        name=name,
        terms=manifest.terms,
        labels=manifest.labels,
        vocab_size=manifest.vocab_size,
        begin_id=specials.get("bos_token", specials.get("cls_token")),
        end_ids=frozenset(ends_of_turns(tokenizer)),
        unknown_id=specials.get("unk_token"),
    )


def stored_examples(store: ExampleStore, split: Split) -> Iterator[Example]:
    """In their order, as they were encoded, but for what only scores need."""
    chosen = store.train if split == "train" else store.held_out
    for begin in range(0, chosen.num_examples, _TOGETHER):
        numbers = np.arange(begin, min(begin + _TOGETHER, chosen.num_examples), dtype=np.int64)
        yield from examples_at(store, chosen, numbers)


def examples_at(store: ExampleStore, split: ExampleSplit, numbers: Array) -> Iterator[Example]:
    names = [c.name for c in store.manifest.columns if c.axis != "aside"]
    found = {name: _cut(*split.values(name, numbers)) for name in names}
    places = found.pop(PLACES.name)
    for at, (file, row, notes) in enumerate(places):
        arrays = {name: values[at] for name, values in found.items()}
        where = store.manifest.files[int(file)]
        yield Example(arrays, where, int(row), notes=notes_of(int(notes)))


def _cut(values: Array, lengths: Array) -> list[Array]:
    wide = values if values.dtype == np.float32 else values.astype(np.int64)
    return np.split(wide, np.cumsum(lengths)[:-1])


def _of_rows(stores: Sequence[ExampleStore]) -> Iterator[Finding]:
    """Packed rows hold every example once, and none beyond their end."""
    for store in stores:
        for split in (store.train, store.held_out):
            wrong = _wrong_rows(split, store.manifest.row_tokens)
            if wrong:
                places = tuple(f"{store.path.name} row {row}" for row in wrong[:MOST_PLACES])
                yield finding("packing", len(wrong), of=split.num_rows, places=places)


def _wrong_rows(split: ExampleSplit, row_tokens: int) -> list[int]:
    if not split.num_rows:
        return []
    rows = np.arange(split.num_rows, dtype=np.int64)
    examples, counts = split.examples_of(rows)
    row_of = np.repeat(rows, counts)
    tokens = np.bincount(row_of, weights=split.row_lengths()[examples], minlength=len(rows))
    seen = np.bincount(examples, minlength=split.num_examples)
    twice = row_of[seen[examples] > 1]
    missing = [0] if (seen == 0).any() else []
    found: list[int] = np.unique([*np.flatnonzero(tokens > row_tokens), *twice, *missing]).tolist()
    return [int(row) for row in found]
