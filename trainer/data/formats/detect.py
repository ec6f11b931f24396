"""Which format a source is in, when its settings leave it open: by names first, then beginnings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.config.sections.examples import FormatName, RecordsSource
from trainer.data.formats.rows import opened
from trainer.errors import DataError

SUFFIXES: dict[str, FormatName] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".conll": "conll", ".conllu": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll",
}  # fmt: skip
_PROBE_BYTES = 4096


def is_data_set(path: str) -> bool:
    """Whether it names a folder that `datasets` saved, or, being no path here, a hub name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    looks_like_a_name = path.count("/") <= 1 and not any(c in path for c in "*?[~\\")
    return looks_like_a_name and not path.startswith((".", "/")) and not Path(path).suffix


def format_of(source: RecordsSource, files: Sequence[Path]) -> FormatName:
    """Raises: DataError if it cannot be told, or the files differ."""
    if source.format != "auto":
        return source.format
    if source.target_paths:
        return "parallel"
    found = {file: _of_file(file) for file in files}
    if len(set(found.values())) > 1:
        pairs = list(found.items())
        first, other = pairs[0], next(p for p in pairs if p[1] != pairs[0][1])
        raise DataError(
            f"{first[0]} is {first[1]} and {other[0]} is {other[1]}; give files of one format to "
            "a source, or set format"
        )
    return next(iter(found.values()))


def _of_file(path: Path) -> FormatName:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    last = suffixes[-1] if suffixes else ""
    if last in SUFFIXES:
        return SUFFIXES[last]
    if last == ".json":
        return _of_json(path)
    raise DataError(
        f"{path}: its name does not say its format; set format to one of jsonl, json, csv, tsv, "
        "parquet, conll, squad, or give parallel texts as paths and target_paths"
    )


def _of_json(path: Path) -> FormatName:
    """An array of rows, SQuAD's object with "data", or lines that are objects."""
    with opened(path) as stream:
        start = stream.read(_PROBE_BYTES).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if start.startswith("["):
        return "json"
    first_line = start.partition("\n")[0]
    try:
        value = json.loads(first_line)
    except ValueError:
        value = None
    if isinstance(value, dict) and "data" not in value:
        return "jsonl"
    if '"paragraphs"' in start and '"data"' in start:
        return "squad"
    raise DataError(
        f"{path} is JSON, but neither a list of rows, nor lines, nor SQuAD's; set format to json, "
        "jsonl or squad"
    )
