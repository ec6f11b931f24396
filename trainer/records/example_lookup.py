"""Where the example store of each source is, and whether it is current: milliseconds, no imports.

The key of a store is a hash over everything that decides its bytes: the files of its source, the
task's settings, the tokenizer with its templates, and the code itself that reads formats and
encodes. A changed line there makes other stores, so no version number can be forgotten; where the
bytes come out the same, runs go on with them (`content_digest`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.records.example_store import read_example_manifest
from trainer.records.store_lookup import (
    StoreFound,
    StoreKeys,
    expanded,
    tokenizer_files,
)
from trainer.records.token_store import MANIFEST, TOKENIZER

# Beside the tokenizer itself: what its special tokens and its chats look like.
BESIDE_TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# Below trainer/: the code that decides what is in a store.
CODE = (
    "data/encodings",
    "data/formats",
    "data/best_fit.py",
    "data/exact_fit.py",
    "data/task_tokenizer.py",
    "data/template.py",
    "data/augment.py",
    "data/back_translated.py",
)
# Of a task: what its loss is changed by, which no prepared byte depends on.
OF_LOSS = ("label_smoothing", "z_loss", "prefix_lm")
_OF_ROWS = ("sequence_length", "packing", "held_out_fraction", "labels", "augment")


def find_example_stores(
    data: Mapping[str, Any], task: Mapping[str, Any], *, decoder_start: int | None = None
) -> list[StoreFound] | None:
    """The store of every source of `data`, both sections as plain values, if all are current.
    `decoder_start`: of the model (decoder_start.py), where it is an encoder-decoder.

    Raises: DataError if a file that a source names is missing.
    """
    keys = example_keys(data, task, decoder_start=decoder_start)
    found = [
        found_example_store(keys.store_folder(name), source=name, weight=float(s["weight"]))
        for name, s in data["sources"].items()
    ]
    whole = [store for store in found if store is not None]
    return whole if len(whole) == len(found) else None


def found_example_store(folder: Path, *, source: str, weight: float) -> StoreFound | None:
    """None if the store is not there or a file of it is missing or of the wrong size."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_example_manifest(folder)
    except DataError:  # damaged, or of an older format: made anew, like one that lacks a file
        return None
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest.tokenizer_digest:
        return None
    if next(example_misfits(folder), None) is not None:
        return None
    return StoreFound(
        source=source,
        path=str(folder),
        weight=weight,
        train_tokens=manifest.num_tokens("train"),
        held_out_tokens=manifest.num_tokens("held_out"),
        manifest_digest=manifest.content_digest,
        train_rows=manifest.num_rows("train"),
        train_examples=manifest.num_examples("train"),
        labels=manifest.labels,
    )


def example_misfits(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, its size or -1, the size it should have) of each file that is not as recorded."""
    for name, file in read_example_manifest(folder).stored_files():
        path = folder / name
        size = path.stat().st_size if path.exists() else -1
        if size != file.size:
            yield path, size, file.size


def example_keys(
    data: Mapping[str, Any], task: Mapping[str, Any], *, decoder_start: int | None = None
) -> StoreKeys:
    """Raises: DataError if a path is missing or a pattern matches nothing."""
    tokenizer = _digest(tokenizer_facts(data["tokenizer"]["path"]))
    facts = {name: _source_facts(data, name) for name in data["sources"]}
    rows = {k: data[k] for k in _OF_ROWS}
    encoded = {k: v for k, v in task.items() if k not in OF_LOSS}
    shared: list[Any] = [tokenizer, encoded, _template(task), rows, code_digest()]
    if (lexicon := data["augment"]["lexicon"]) is not None and data["augment"]["copies"]:
        shared.append(_content({"format": "text"}, lexicon))
    if (back := data["augment"].get("back_translation")) is not None:
        shared.append(translator_facts(back))
    if decoder_start is not None:
        shared.append(["decoder_start", decoder_start])
    if data["labels"] is None:  # they come from all sources, in which every source's numbers stand
        shared.append(facts)
    stores = {name: _digest([*shared, name, known]) for name, known in facts.items()}
    root = Path(data["store_root"]).expanduser().absolute()
    return StoreKeys(root=root, tokenizer=tokenizer, stores=stores)


def translator_facts(back: Mapping[str, Any]) -> list[Any]:
    """Of the two models that say texts in another language and back: their files.

    Raises: DataError if a folder is missing.
    """
    for name in ("there", "back"):
        if not Path(str(back[name])).expanduser().is_dir():
            what = f"data.augment.back_translation.{name}: there is no folder {back[name]}"
            raise DataError(f"{what}; name one with a model of transformers' and its tokenizer")
    return [_content({"format": "datasets"}, str(back[name])) for name in ("there", "back")]


def tokenizer_facts(path: str) -> list[tuple[str, str]]:
    """(name, sha256) of each file that decides what a text becomes."""
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in all_tokenizer_files(path)]


def all_tokenizer_files(path: str) -> list[Path]:
    """Raises: DataError if there is no tokenizer at `path`."""
    files = tokenizer_files(path)
    folder = files[0].parent
    beside = [folder / name for name in BESIDE_TOKENIZER if (folder / name).is_file()]
    return list(dict.fromkeys([*files, *beside]))


@cache
def code_digest() -> str:
    """Of the source files that read formats, encode and make rows."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for name in CODE:
        place = root / name
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
        for file in files:
            found.update(file.relative_to(root).as_posix().encode() + b"\0")
            found.update(file.read_bytes() + b"\0")
    return found.hexdigest()


def _source_facts(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    held_out = data["held_out"].get(name)
    return {
        "train": _records_facts(data["sources"][name]),
        "held_out": None if held_out is None else _records_facts(held_out),
    }


def _records_facts(source: Mapping[str, Any]) -> dict[str, Any]:
    settings = {k: v for k, v in source.items() if k != "weight"}
    paths = [*source["paths"], *source["target_paths"]]
    return {"settings": settings, "content": [_content(source, path) for path in paths]}


def _content(source: Mapping[str, Any], path: str) -> list[tuple[str, int, int]]:
    folder = Path(path).expanduser()
    if source["format"] == "datasets" or folder.is_dir():  # a hub name has no files here
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    else:
        files = expanded([path])
    stats = [(file, file.stat()) for file in files]
    return [(str(file), status.st_size, status.st_mtime_ns) for file, status in stats]


def _template(task: Mapping[str, Any]) -> str:
    """Of the chat template that the task names by a path: its text decides, not its name."""
    path = Path(str(task.get("template") or "")).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
