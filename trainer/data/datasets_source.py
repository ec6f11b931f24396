"""Documents of a `datasets` folder or a hub name. The one door to datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config.sections.data import DatasetsSource
from trainer.errors import DataError


def datasets_documents(source: DatasetsSource) -> Iterator[str]:
    """One document a row, in the data set's own order.

    Raises: DataError if it cannot be loaded, or a row has no text.
    """
    import datasets  # 0.9 s that other kinds of source need not pay

    try:
        rows = _loaded(datasets, source)
        names = rows.column_names
    except DataError:
        raise
    except Exception as e:  # the hub, the cache and user files fail in too many ways to list
        raise _not_loaded(source, e) from e
    key = source.text_key
    if names is not None and key not in names:
        known = ", ".join(names[:6])
        raise DataError(f"data set {source.path} has no column '{key}' (it has: {known})")
    for number, row in enumerate(rows, 1):
        text = row.get(key)
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"data set {source.path} row {number}: '{key}' is {kind}, not text")
        if text:
            yield text


def _loaded(datasets: Any, source: DatasetsSource) -> Any:
    folder = Path(source.path).expanduser()
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    if (folder / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(str(folder))
        if source.split not in splits:
            known = ", ".join(splits)
            raise DataError(f"data set {folder} has no split '{source.split}' (it has: {known})")
        return splits[source.split]
    target = str(folder) if folder.exists() else source.path
    return datasets.load_dataset(
        target, source.config_name, split=source.split, streaming=source.streaming
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def dataset_rows(source: DatasetsSource) -> Iterator[dict[str, Any]]:
    """Every row with all its columns, in the data set's own order; streamed if it can be.

    Numbers of a ClassLabel become the names of their classes.
    Raises: DataError if it cannot be loaded.
    """
    import datasets

    try:
        rows = _loaded(datasets, source)
        features = dict(rows.features or {})
        every = iter(rows)
    except DataError:
        raise
    except Exception as e:  # the hub, the cache and user files fail in too many ways to list
        raise _not_loaded(source, e) from e
    while True:
        try:
            row = next(every)
        except StopIteration:
            return
        except Exception as e:
            raise _not_loaded(source, e) from e
        yield {name: _named(features.get(name), value) for name, value in row.items()}


def _named(feature: Any, value: Any) -> Any:
    """-1 is how data sets write "no label"."""
    if hasattr(feature, "int2str") and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_named(feature.feature, item) for item in value]
    if isinstance(value, dict) and isinstance(feature, dict):
        return {name: _named(feature.get(name), item) for name, item in value.items()}
    return value


def _not_loaded(source: DatasetsSource, e: Exception) -> DataError:
    return DataError(
        f"data set {source.path} cannot be loaded: {type(e).__name__}: {_first_line(e)}; give a "
        "folder written by save_to_disk, or a hub name that this machine can reach"
    )
