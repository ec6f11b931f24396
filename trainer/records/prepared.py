"""Prepared data of either kind, text or examples: where it is, and its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.audit import is_fit, subject_name
from trainer.records.decoder_start import decoder_start
from trainer.records.example_lookup import find_example_stores
from trainer.records.example_store import KIND, read_example_manifest
from trainer.records.store_lookup import StoreFound, find_stores
from trainer.records.token_store import read_manifest


def find_prepared(config: Mapping[str, Any]) -> list[StoreFound] | None:
    """The store of every source of a run's settings (plain values), if all are current.

    None: something is to be prepared, or a custom source needs its class asked for a digest.
    Raises: DataError if a file that a source names is missing.
    """
    if is_examples(config["data"]):
        found = find_example_stores(
            config["data"], config["task"], decoder_start=decoder_start(config["model"])
        )
        return _fit(found, config["data"])
    return find_stores(config["data"])


def _fit(stores: list[StoreFound] | None, data: Mapping[str, Any]) -> list[StoreFound] | None:
    """None where the audit has not seen these stores together, or may have to refuse them."""
    if stores is None:
        return None
    audit = data["audit"]
    digests = {store.source: store.manifest_digest for store in stores}
    name = subject_name(digests, near_copies=audit["near_copies"])
    fit = all(is_fit(Path(s.path), subject=name, allow=audit["allow"]) for s in stores)
    return stores if fit else None


def prepared_vocab_size(folder: Path, *, data: Mapping[str, Any]) -> int:
    """Of the tokenizer of a store. Raises: DataError if it has no readable manifest."""
    if is_examples(data):
        return read_example_manifest(folder).vocab_size
    return read_manifest(folder).vocab_size


def is_examples(data: Mapping[str, Any]) -> bool:
    """Text says no kind (trainer/config/schema.py)."""
    return data.get("kind") == KIND
