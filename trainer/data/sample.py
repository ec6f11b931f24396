"""A deterministic sample of the text of all sources, for training a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.config.sections.data import DataSection, DatasetsSource, FilesSource, StdlibSource
from trainer.data.order import is_held_out
from trainer.data.sources import AnySource, Rejected, documents
from trainer.records.store_lookup import expanded, stdlib_files

MAX_READ = 16  # the sample comes from at most this many times its own size of text
_UNKNOWN_SHARE = 0.25


def sampled(data: DataSection, *, trust: Sequence[str], num_bytes: int) -> Iterator[str]:
    """About `num_bytes` of text, by weight from each source, spread over its documents.

    Of a source larger than MAX_READ times its part only the first so many bytes are sampled.
    """
    total_weight = sum(source.weight for source in data.sources.values())
    for name, source in data.sources.items():
        quota = max(1, int(num_bytes * source.weight / total_weight))
        yield from _of_source(name, source, trust=trust, quota=quota)


def total_bytes(source: AnySource) -> int:
    """Bytes of text of a source, roughly; 0 if it cannot be told without reading it."""
    match source:
        case StdlibSource():
            return sum(size for _, size, _ in stdlib_files())
        case FilesSource(format="text" | "jsonl"):
            files = expanded(source.paths)
            return 0 if any(p.suffix == ".gz" for p in files) else sum(map(_size, files))
        case _:
            return 0


def _of_source(name: str, source: AnySource, *, trust: Sequence[str], quota: int) -> Iterator[str]:
    if isinstance(source, DatasetsSource) or not (total := total_bytes(source)):
        share = _UNKNOWN_SHARE
    else:
        share = max(quota / total, 1 / MAX_READ)
    rejected = Rejected(source=name)  # a policy `skip` counts later, when all is read
    taken = 0
    for number, text in enumerate(documents(source, trust=trust, rejected=rejected)):
        if share < 1 and number > 0 and not is_held_out(number, share):
            continue  # the same hash as the split: any that spreads will do
        yield text[: quota - taken]
        taken += len(text)
        if taken >= quota:
            return


def _size(path: Path) -> int:
    return path.stat().st_size
