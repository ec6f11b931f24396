"""What is trained on, for people: rows as the model sees them, and counts of the stores."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.batch import IGNORED, TokenBatch
from trainer.config.schema import Config
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.data.stream import Stream, token_stream
from trainer.data.tokenizer import TextTokenizer
from trainer.plan import StorePlan


@dataclass(frozen=True)
class ShownToken:
    """One position of a row. `label` is None where nothing is predicted."""

    position: int
    document: int
    id: int
    text: str
    label: int | None


@dataclass(frozen=True)
class ShownRow:
    sample: int
    source: str
    row: int
    tokens: tuple[ShownToken, ...]


def whole_stream(config: Config, stores: Sequence[StorePlan]) -> Stream[TokenBatch]:
    """The stream of the configuration as one rank would see it, one row a micro-batch."""
    sources = [StreamSource(s.source, TokenStore.open(Path(s.path)), s.weight) for s in stores]
    shape = RowShape(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=1,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
    )
    seed = config.run.seed
    return token_stream(sources, shape=shape, seed=seed, rank=0, world_size=1, prefetch_steps=0)


def shown_row(config: Config, stores: Sequence[StorePlan], *, sample: int) -> ShownRow:
    """The row of a global sample index. Raises: DataError as Stream does."""
    stream = whole_stream(config, stores)
    step, row = divmod(sample, config.batch.global_batch_size)
    batch = stream.step(step + 1)[row]
    place = stream.places(sample, 1)[0]
    tokenizer = TextTokenizer.open(Path(stores[0].path))
    columns = zip(
        batch.inputs_RT[0].tolist(),
        batch.labels_RT[0].tolist(),
        batch.positions_RT[0].tolist(),
        strict=True,
    )
    document, shown = place.first_document, []
    for column, (token, label, position) in enumerate(columns):
        document += column > 0 and position == 0
        text = tokenizer.decode([token])
        shown.append(
            ShownToken(position, document, token, text, None if label == IGNORED else label)
        )
    return ShownRow(sample, place.source, place.row, tuple(shown))


def audit(
    config: Config, stores: Sequence[StorePlan], *, first_step: int, last_step: int
) -> dict[str, Any]:
    """Counts of every store, and what the steps first..last (both included) consume."""
    found = {s.source: _counted(TokenStore.open(Path(s.path)), s) for s in stores}
    batch, length = config.batch.global_batch_size, config.data.sequence_length
    first, count = (first_step - 1) * batch, (last_step - first_step + 1) * batch
    places = whole_stream(config, stores).places(first, count)
    rows = Counter(place.source for place in places)
    consumed = {
        name: {
            "rows": rows[name],
            "share": rows[name] / count,
            "different_rows": len({p.row for p in places if p.source == name}),
            "tokens": rows[name] * length,
        }
        for name in found
    }
    span = {"first": first_step, "last": last_step, "samples": [first, first + count]}
    return {"sources": found, "steps": span | {"sources": consumed}}


def _counted(store: TokenStore, plan: StorePlan) -> dict[str, Any]:
    manifest = store.manifest
    facts = {
        split: {
            "documents": manifest.num_documents(split),
            "tokens": manifest.num_tokens(split),
        }
        for split in ("train", "held_out")
    }
    return {
        **facts,
        "path": plan.path,
        "weight": plan.weight,
        "vocab_size": manifest.vocab_size,
        "source_bytes": manifest.source_bytes,
        "skipped_documents": manifest.skipped_documents,
        "unigram_entropy_nats": manifest.unigram_entropy_nats,
        **_duplicates(store),
    }


def _duplicates(store: TokenStore) -> dict[str, int]:
    """Documents equal to an earlier one; `leaked` are held-out ones that are also trained on."""
    seen: set[bytes] = set()
    counts = {"duplicates": 0, "leaked": 0}
    for name, split in (("duplicates", store.train), ("leaked", store.held_out)):
        for tokens in split.documents():
            digest = hashlib.blake2b(tokens.tobytes(), digest_size=12).digest()
            counts[name] += digest in seen
            if split is store.train:
                seen.add(digest)
    return counts


def as_dict(row: ShownRow) -> dict[str, Any]:
    return asdict(row)
