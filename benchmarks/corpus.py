"""What the data benchmarks share: the standard library as a corpus, and a store of it."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np

from trainer.config.sections.data import StdlibSource, TrainedTokenizer
from trainer.data.encode_pool import EncodeSettings, encoded
from trainer.data.encoder import token_dtype
from trainer.data.sources import Rejected, documents
from trainer.data.store import TokenStore
from trainer.data.store_writer import StoreWriter
from trainer.data.tokenizer import tokenizer_digest, trained
from trainer.records.token_store import StoreManifest


def texts(num_bytes: int) -> list[str]:
    """The standard library's sources, repeated under other names until they are long enough."""
    once = list(documents(StdlibSource(kind="stdlib"), trust=(), rejected=Rejected()))
    found, size, copy = [], 0, 0
    while size < num_bytes:
        for text in once:
            # other words, so that a cache of words does not see the same corpus again
            found.append(text if copy == 0 else text.replace("e", f"e{copy}"))
            size += len(text)
            if size >= num_bytes:
                break
        copy += 1
    return found


def tokenizer_folder(folder: Path, sample: list[str], *, vocab_size: int = 16_384) -> Path:
    settings = TrainedTokenizer(kind="train_bpe", vocab_size=vocab_size, sample_bytes=1_000_000)
    folder.mkdir(parents=True)
    trained(settings, sample).write(folder)
    return folder


def store(folder: Path, corpus: list[str], *, tokenizer: Path, accelerated: bool) -> TokenStore:
    """Through the parts that `data prepare` uses: encoder, writer, manifest, fsync, rename."""
    settings = EncodeSettings(tokenizer, accelerated=accelerated, processes=0)
    writer = StoreWriter(folder, key="bench", dtype=token_dtype(16_384), shard_tokens=10**8)
    writer.resume()
    for chunk in encoded(iter(corpus), settings):
        writer.add("train", tokens=chunk.tokens_N, lengths=chunk.lengths_D)
    shards = writer.finish()
    writer.publish(
        StoreManifest(
            source="bench",
            dtype="uint16",
            vocab_size=16_384,
            end_of_text_id=0,
            tokenizer_digest=tokenizer_digest(tokenizer),
            preparation_key="bench",
            code_version=1,
            source_bytes=1,
            skipped_documents=0,
            unigram_entropy_nats=writer.unigram_entropy(),
            shards=shards,
        )
    )
    return TokenStore.open(folder)


def flat_tokens(made: TokenStore) -> np.ndarray:
    return np.concatenate([made.train.shard(n).tokens_N for n in range(made.train.num_shards)])


def cpu_seconds() -> float:
    """Of this process, all its threads, and its finished children."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
