"""Documents of Parquet files. The one door to pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config.sections.data import FilesSource
from trainer.errors import DataError

_ROWS_AT_ONCE = 1024


def parquet_documents(
    source: FilesSource, *, files: Sequence[Path], reject: Callable[[str], None]
) -> Iterator[str]:
    """One document a row, read in batches so that memory stays bounded.

    Raises: DataError if a file is not Parquet or lacks the column.
    """
    import pyarrow as pa  # 0.1 s that other kinds of source need not pay
    import pyarrow.parquet as pq

    key = source.text_key
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                if key not in file.schema_arrow.names:
                    known = ", ".join(file.schema_arrow.names[:6])
                    raise DataError(f"{path} has no column '{key}' (it has: {known}; set text_key)")
                number = 0
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[key]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        if _good(text, source, where=f"{path} row {number}", reject=reject):
                            yield text
                if number == 0:
                    reject(f"{path} is empty")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            raise DataError(f"{path} cannot be read as Parquet: {e}") from e


def _good(text: object, source: FilesSource, *, where: str, reject: Callable[[str], None]) -> bool:
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        reject(f"{where}: the column '{source.text_key}' is {kind}, not text")
        return False
    limit = source.max_document_bytes
    # a character has at most 4 bytes, so most texts need not be encoded to be judged
    if len(text) * 4 > limit and len(text.encode()) > limit:
        reject(f"{where} is longer than max_document_bytes={limit:,}")
        return False
    return bool(text)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Every row as named Python values, read in batches so that memory stays bounded.

    Raises: DataError if the file is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read as Parquet: {e}") from e
