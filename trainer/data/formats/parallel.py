"""Parallel texts: line n of one file says what line n of the other says. Gzip too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

from trainer.config.sections.examples import RecordsSource
from trainer.data.file_sources import byte_lines
from trainer.data.formats.rows import Reject, Row, checked_start, line_text, opened
from trainer.errors import DataError

_Line = tuple[int, int, bytes | None]


def parallel_rows(source: RecordsSource, path: Path, target: Path, reject: Reject) -> Iterator[Row]:
    """Raises: DataError if a file cannot be read, or one has more lines than the other."""
    limit = source.max_row_bytes
    with opened(path) as left, opened(target) as right:
        if not all([_starts(left, path), _starts(right, target)]):
            return
        pairs = zip_longest(byte_lines(left, limit=limit), byte_lines(right, limit=limit))
        for row, (one, other) in enumerate(pairs, 1):
            if one is None or other is None:
                raise _uneven(path, target, row=row, short=path if one is None else target)
            values = {
                "source": _text(one, path, reject),
                "target": _text(other, target, reject),
            }
            if None not in values.values():
                yield Row(values, str(path), row)


def pairs_of(files: list[Path], targets: list[Path]) -> list[tuple[Path, Path]]:
    """Raises: DataError if there are not as many on both sides."""
    if len(files) != len(targets):
        raise DataError(
            f"paths names {len(files)} files and target_paths {len(targets)}; parallel texts "
            "come in pairs, in the same order"
        )
    return list(zip(files, targets, strict=True))


def _starts(stream: IO[bytes], path: Path) -> bool:
    def stop(reason: str) -> None:
        raise DataError(f"{reason}; a pair of files cannot do without it")

    return checked_start(stream, path, reject=stop)


def _text(line: _Line, path: Path, reject: Reject) -> str | None:
    number, offset, raw = line
    if raw is None:
        reject(f"{path} row {number} is longer than max_row_bytes")
        return None
    text = line_text(raw, path=path, row=number, offset=offset, reject=reject)
    return None if text is None else text.strip()


def _uneven(path: Path, target: Path, *, row: int, short: Path) -> DataError:
    return DataError(
        f"{path} and {target} do not have equally many lines: {short.name} ends before line {row}; "
        "no pair can be trusted"
    )
