"""Preparations of a tiny corpus, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.configs import config
from trainer.config.schema import Config

BPE = {"kind": "train_bpe", "vocab_size": 400, "sample_bytes": 100_000}


def tiny_config(corpus: Path, root: Path, **data: Any) -> Config:
    source = {"kind": "files", "format": "jsonl", "paths": [str(corpus)]}
    settings = {
        "sources": {"tiny": source},
        "tokenizer": BPE,
        "store_root": str(root),
        "held_out_fraction": 0.2,
        "num_workers": 1,
        "shard_tokens": 1000,
    }
    return config(data=settings | data)


def silent(_: str) -> None:
    pass
