"""Writes a token store: shards into `<store>.incoming`, the manifest last, then one rename.

A kill loses at most the open shard: each time a shard of any split is finished, progress.json says
how many documents are in and how long every file was at that moment; what is longer is cut.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from trainer.data.encoder import Ids
from trainer.data.store_files import (
    PROGRESS,
    create,
    flushed,
    pieces,
    put_in_place,
    reopened,
    space_named,
    write_all,
)
from trainer.records.json_file import read_json, write_json
from trainer.records.token_store import Shard, Split, StoreManifest, write_manifest

SPLITS: tuple[Split, ...] = ("train", "held_out")


@dataclass
class _OpenShard:
    """The shard of one split that is being written."""

    split: Split
    number: int = 0
    num_tokens: int = 0
    num_documents: int = 0
    tokens_crc: int = 0
    documents_crc: int = 0
    files: tuple[IO[bytes], IO[bytes]] | None = None
    done: list[Shard] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


class StoreWriter:
    """Takes documents in order; `next_document` says where to go on after a restart."""

    def __init__(self, final: Path, *, key: str, dtype: Any, shard_tokens: int) -> None:
        self.final = final
        self.incoming = final.with_name(final.name + ".incoming")
        self.next_document = 0
        self.source_bytes = 0
        self._key = f"{key}/{shard_tokens}"
        self._dtype = np.dtype(dtype)
        self._shard_tokens = shard_tokens
        self._shards = {split: _OpenShard(split) for split in SPLITS}
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # of each id, train split

    def resume(self) -> None:
        """Take up an interrupted preparation of the same key, or start with an empty folder."""
        with space_named(self.incoming):
            saved = self._saved()
            if saved is None:
                shutil.rmtree(self.incoming, ignore_errors=True)
                self.incoming.mkdir(mode=0o700)
                return
            self.next_document = saved["next_document"]
            self.source_bytes = saved["source_bytes"]
            for split in SPLITS:
                self._restore(self._shards[split], saved["splits"][split])
            self._remove_unknown()

    def add(self, split: Split, *, tokens: Ids, lengths: npt.NDArray[np.int64]) -> bool:
        """Append documents to a split, cutting shards; True if one was finished.

        The caller then says `record_progress` at the next point where both splits are complete.
        """
        finished = False
        shard = self._shards[split]
        ends = np.cumsum(lengths)
        begin_document = begin_token = 0
        while begin_document < len(lengths):
            room = self._shard_tokens - shard.num_tokens
            # the document that reaches the limit is the shard's last one
            stop = int(np.searchsorted(ends, begin_token + room)) + 1
            stop = min(stop, len(lengths))
            end_token = int(ends[stop - 1])
            starts = ends[begin_document:stop] - lengths[begin_document:stop] - begin_token
            self._append(shard, tokens=tokens[begin_token:end_token], starts=starts)
            if shard.num_tokens >= self._shard_tokens:
                self._finish(shard)
                finished = True
            begin_document, begin_token = stop, end_token
        return finished

    def record_progress(self, *, next_document: int, source_bytes: int) -> None:
        """From here a restart goes on. All documents before `next_document` have been added."""
        self.next_document, self.source_bytes = next_document, source_bytes
        splits = {}
        with space_named(self.incoming):
            for split, shard in self._shards.items():
                for file in shard.files or ():
                    flushed(file)
                splits[split] = {
                    "number": shard.number,
                    "num_tokens": shard.num_tokens,
                    "num_documents": shard.num_documents,
                    "tokens_crc": shard.tokens_crc,
                    "documents_crc": shard.documents_crc,
                    "done": [asdict(s) for s in shard.done],
                }
            write_json(
                self.incoming / PROGRESS,
                {
                    "key": self._key,
                    "next_document": next_document,
                    "source_bytes": source_bytes,
                    "splits": splits,
                },
            )

    def finish(self) -> tuple[Shard, ...]:
        """Close the last shards of both splits; the shards of the whole store."""
        for shard in self._shards.values():
            if shard.num_documents:
                self._finish(shard)
        return tuple(s for split in SPLITS for s in self._shards[split].done)

    def publish(self, manifest: StoreManifest) -> None:
        """Make the store real: manifest last, then the rename."""
        with space_named(self.incoming):
            write_manifest(self.incoming, manifest)
            put_in_place(self.incoming, self.final)

    def discard(self) -> None:
        self.close()
        shutil.rmtree(self.incoming, ignore_errors=True)

    def close(self) -> None:
        for shard in self._shards.values():
            for file in shard.files or ():
                file.close()
            shard.files = None

    def unigram_entropy(self) -> float:
        """Of the train split's tokens, in nats."""
        counts = self._counts[self._counts > 0].astype(np.float64)
        share = counts / max(counts.sum(), 1.0)
        return float(-(share * np.log(share)).sum())

    def _append(self, shard: _OpenShard, *, tokens: Ids, starts: npt.NDArray[np.int64]) -> None:
        with space_named(self.incoming):
            if shard.files is None:
                shard.files = tuple(create(p) for p in self._paths(shard.name))  # type: ignore[assignment]
            assert shard.files is not None
            raw = np.ascontiguousarray(tokens, dtype=self._dtype).tobytes()
            index = (starts + shard.num_tokens).astype("<u8").tobytes()
            write_all(shard.files[0], raw)
            write_all(shard.files[1], index)
        shard.tokens_crc = google_crc32c.extend(shard.tokens_crc, raw)
        shard.documents_crc = google_crc32c.extend(shard.documents_crc, index)
        shard.num_tokens += len(tokens)
        shard.num_documents += len(starts)
        if shard.split == "train":
            self._count(tokens)

    def _count(self, tokens: npt.NDArray[Any]) -> None:
        found = np.bincount(tokens)
        if len(found) > len(self._counts):
            self._counts = np.concatenate(
                [self._counts, np.zeros(len(found) - len(self._counts), np.int64)]
            )
        self._counts[: len(found)] += found

    def _finish(self, shard: _OpenShard) -> None:
        with space_named(self.incoming):
            for file in shard.files or ():
                flushed(file)
                file.close()
        shard.done.append(
            Shard(
                name=shard.name,
                split=shard.split,
                num_tokens=shard.num_tokens,
                num_documents=shard.num_documents,
                tokens_crc=f"{shard.tokens_crc:08x}",
                documents_crc=f"{shard.documents_crc:08x}",
            )
        )
        shard.number += 1
        shard.num_tokens = shard.num_documents = 0
        shard.tokens_crc = shard.documents_crc = 0
        shard.files = None

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.incoming / f"{name}.tokens", self.incoming / f"{name}.documents"

    def _saved(self) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = read_json(self.incoming / PROGRESS)
        except (FileNotFoundError, ValueError):
            return None
        return saved if saved.get("key") == self._key else None

    def _restore(self, shard: _OpenShard, saved: dict[str, Any]) -> None:
        shard.number = saved["number"]
        shard.done = [Shard(**s) for s in saved["done"]]
        for name in ("num_tokens", "num_documents", "tokens_crc", "documents_crc"):
            setattr(shard, name, saved[name])
        if shard.num_documents:
            paths = self._paths(shard.name)
            sizes = (shard.num_tokens * self._dtype.itemsize, shard.num_documents * 8)
            shard.files = (reopened(paths[0], sizes[0]), reopened(paths[1], sizes[1]))
        if shard.split == "train":
            names = [s.name for s in shard.done] + ([shard.name] if shard.num_documents else [])
            for name in names:
                for piece in pieces(self._paths(name)[0]):
                    self._count(np.frombuffer(piece, dtype=self._dtype))

    def _remove_unknown(self) -> None:
        known = {s.name for shard in self._shards.values() for s in shard.done}
        known |= {shard.name for shard in self._shards.values() if shard.num_documents}
        for path in self.incoming.iterdir():
            if path.suffix in (".tokens", ".documents") and path.stem not in known:
                path.unlink()
