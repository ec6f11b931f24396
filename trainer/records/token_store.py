"""The manifest of a token store: what was prepared, from what, by which tokenizer.

    <store>/manifest.json           written last: its presence means "complete"
    <store>/tokenizer.json          the tokenizer (Hugging Face fast format)
    <store>/train-00000.tokens      uint16 or uint32 token ids, little-endian, no header
    <store>/train-00000.documents   uint64 start of each document, in tokens from the file's start
    <store>/held_out-00000.*        the evaluation split, made at preparation

Every document ends with the end-of-text token, which counts as a token of the document.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
Split = Literal["train", "held_out"]
_SHARD = re.compile(r"(train|held_out)-\d{5,9}")
_MOST = 2**53


@dataclass(frozen=True)
class Shard:
    """Two files, `<name>.tokens` and `<name>.documents`; digests are crc32c, as hex."""

    name: str
    split: Split
    num_tokens: int
    num_documents: int
    tokens_crc: str
    documents_crc: str


@dataclass(frozen=True)
class StoreManifest:
    """Units: counts are tokens and documents; `source_bytes` is UTF-8 text before tokenizing."""

    source: str  # the name under data.sources
    dtype: Literal["uint16", "uint32"]
    vocab_size: int  # ids are below this
    end_of_text_id: int
    tokenizer_digest: str  # sha256 of tokenizer.json
    preparation_key: str  # hash of source settings, tokenizer and code version
    code_version: int
    source_bytes: int
    skipped_documents: int
    unigram_entropy_nats: float  # of the train split's tokens
    shards: tuple[Shard, ...]

    def num_tokens(self, split: Split) -> int:
        return sum(s.num_tokens for s in self.shards if s.split == split)

    def num_documents(self, split: Split) -> int:
        return sum(s.num_documents for s in self.shards if s.split == split)

    @property
    def content_digest(self) -> str:
        """Of what is in it: the same if files of another place and time held the same text."""
        said = {k: v for k, v in asdict(self).items() if k != "preparation_key"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    write_json(folder / MANIFEST, {"format": FORMAT, **asdict(manifest)})


def read_manifest(folder: Path) -> StoreManifest:
    """Raises: DataError if there is no readable manifest of a known format."""
    path = folder / MANIFEST
    try:
        value: dict[str, Any] = read_untrusted_json(path)
    except FileNotFoundError:
        raise DataError(f"{folder} is not a complete token store: no {MANIFEST}") from None
    except ValueError as e:
        raise DataError(f"{path} is damaged ({e}); prepare the data again") from e
    try:
        found = value.pop("format", None)
        if found != FORMAT:
            said = f"{path} has format {found}, this version reads {FORMAT}; prepare it again"
            raise DataError(said)
        shards = tuple(Shard(**s) for s in value.pop("shards"))
        manifest = StoreManifest(shards=shards, **value)
        _check(manifest)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise DataError(f"{path} is damaged ({e}); prepare the data again") from e
    return manifest


def digests_of(folder: Path, manifest: StoreManifest) -> tuple[str, str]:
    """What plans know the store by: its content's, and in older ones its manifest file's."""
    return manifest.content_digest, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _check(manifest: StoreManifest) -> None:
    """Raises: ValueError, TypeError: nothing is opened or made by names and sizes of anybody's."""
    if manifest.dtype not in ("uint16", "uint32"):
        raise ValueError(f"dtype is {str(manifest.dtype)[:80]!r}")
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names):
        raise ValueError("a shard stands in it twice")
    for shard in manifest.shards:
        if not _SHARD.fullmatch(shard.name) or not shard.name.startswith(f"{shard.split}-"):
            raise ValueError(f"a shard is named {shard.name[:80]!r}")
        for count in (shard.num_tokens, shard.num_documents):
            if type(count) is not int or not 0 <= count <= _MOST:
                raise ValueError(f"{shard.name} has {str(count)[:80]} tokens or documents")
    for count in (manifest.vocab_size, manifest.end_of_text_id):
        if type(count) is not int or not 0 <= count <= 2**32:
            raise ValueError(f"a number of its vocabulary is {str(count)[:80]}")
