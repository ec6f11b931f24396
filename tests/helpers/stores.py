"""Token stores made by hand, so that a test knows every token in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.data.store import TokenStore
from trainer.data.store_writer import StoreWriter
from trainer.records.token_store import StoreManifest

END = 0


def make_store(
    folder: Path,
    train: Sequence[Sequence[int]],
    *,
    held_out: Sequence[Sequence[int]] = (),
    shard_tokens: int = 1_000_000,
    tokenizer: str = "t",
    wide: bool = False,
) -> TokenStore:
    """A store of these documents; the end-of-text token 0 is put behind each."""
    dtype = np.uint32 if wide else np.uint16
    writer = StoreWriter(folder, key="k", dtype=dtype, shard_tokens=shard_tokens)
    writer.resume()
    for split, documents in (("train", train), ("held_out", held_out)):
        closed = [np.array([*d, END], dtype=dtype) for d in documents]
        if closed:
            lengths = np.array([len(d) for d in closed], dtype=np.int64)
            writer.add(split, tokens=np.concatenate(closed), lengths=lengths)  # type: ignore[arg-type]
    shards = writer.finish()
    writer.publish(
        StoreManifest(
            source=folder.name,
            dtype="uint32" if wide else "uint16",
            vocab_size=70_000 if wide else 60_000,
            end_of_text_id=END,
            tokenizer_digest=tokenizer,
            preparation_key="k",
            code_version=1,
            source_bytes=1,
            skipped_documents=0,
            unigram_entropy_nats=writer.unigram_entropy(),
            shards=shards,
        )
    )
    return TokenStore.open(folder)


def counting_documents(lengths: Sequence[int], *, first: int = 1) -> list[list[int]]:
    """Documents of these lengths (end of text not counted) whose tokens count on and on."""
    documents, token = [], first
    for length in lengths:
        documents.append(list(range(token, token + length)))
        token += length
    return documents
