"""Where the token store of each source is, and whether it is current: milliseconds, no imports.

Standard library only, so that the launcher can ask before it starts any child process. A store's
folder is named by its key, a hash over everything that decides its content:

    <store_root>/<source>-<key>/            the store (trainer/records/token_store.py)
    <store_root>/tokenizer-<key>/           tokenizer.json that its sources share
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.records.token_store import MANIFEST, TOKENIZER, StoreManifest, read_manifest

PREPARATION_VERSION = 1  # raise it when the same input would give other tokens
KEY_LENGTH = 16
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
# the tests are two thirds of the library and mostly tables; encodings is nothing but tables
STDLIB_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "__pycache__"}
)


@dataclass(frozen=True)
class StoreFound:
    """A current store; the fields are those of plan.StorePlan."""

    source: str
    path: str
    weight: float
    train_tokens: int
    held_out_tokens: int
    manifest_digest: str
    # of example stores
    train_rows: int = 0
    train_examples: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoreKeys:
    """`tokenizer` names the tokenizer's folder, `stores` the folder of each source."""

    root: Path
    tokenizer: str
    stores: Mapping[str, str]

    @property
    def tokenizer_folder(self) -> Path:
        return self.root / f"tokenizer-{self.tokenizer[:KEY_LENGTH]}"

    def store_folder(self, source: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", source)
        return self.root / f"{name}-{self.stores[source][:KEY_LENGTH]}"


def find_stores(
    data: Mapping[str, Any], *, custom_digests: Mapping[str, str] | None = None
) -> list[StoreFound] | None:
    """The store of every source of `data` (the data section as plain values), if all are current.

    None: something is to be prepared, or a custom source needs its class asked for a digest.
    Raises: DataError if a file that a source names is missing.
    """
    keys = store_keys(data, custom_digests=custom_digests or {})
    if keys is None:
        return None
    found = [
        found_store(keys.store_folder(name), source=name, weight=float(s["weight"]))
        for name, s in data["sources"].items()
    ]
    whole = [store for store in found if store is not None]
    return whole if len(whole) == len(found) else None


def found_store(folder: Path, *, source: str, weight: float) -> StoreFound | None:
    """None if the store is not there or a file of it is missing or of the wrong size."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(folder)
    except DataError:  # damaged, or of an older format: made anew, like one that lacks a file
        return None
    if any(True for _ in misfits(folder, manifest)) or not has_its_tokenizer(folder, manifest):
        return None
    return StoreFound(
        source=source,
        path=str(folder),
        weight=weight,
        train_tokens=manifest.num_tokens("train"),
        held_out_tokens=manifest.num_tokens("held_out"),
        manifest_digest=manifest.content_digest,
    )


def has_its_tokenizer(folder: Path, manifest: StoreManifest) -> bool:
    """With another tokenizer the store's numbers would mean other text."""
    path = folder / TOKENIZER
    if not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == manifest.tokenizer_digest


def misfits(folder: Path, manifest: StoreManifest) -> Iterable[tuple[Path, int, int]]:
    """(file, its size or -1, the size it should have) of each file that is not as recorded."""
    width = 2 if manifest.dtype == "uint16" else 4
    for shard in manifest.shards:
        sizes = {"tokens": shard.num_tokens * width, "documents": shard.num_documents * 8}
        for kind, expected in sizes.items():
            path = folder / f"{shard.name}.{kind}"
            size = path.stat().st_size if path.exists() else -1
            if size != expected:
                yield path, size, expected


def store_keys(data: Mapping[str, Any], *, custom_digests: Mapping[str, str]) -> StoreKeys | None:
    """None if a custom source has no digest in `custom_digests`. Raises: as find_stores."""
    facts: dict[str, Any] = {}
    for name, source in data["sources"].items():
        if source["kind"] == "custom" and name not in custom_digests:
            return None
        facts[name] = source_facts(source, custom_digest=custom_digests.get(name, ""))
    tokenizer = _digest([PREPARATION_VERSION, _tokenizer_facts(data, facts)])
    shared = [PREPARATION_VERSION, tokenizer, data["held_out_fraction"]]
    stores = {name: _digest([*shared, name, known]) for name, known in facts.items()}
    root = Path(data["store_root"]).expanduser().absolute()
    return StoreKeys(root=root, tokenizer=tokenizer, stores=stores)


def source_facts(source: Mapping[str, Any], *, custom_digest: str = "") -> dict[str, Any]:
    """What decides the documents of a source: its settings, and its files' names and sizes.

    Raises: DataError if a path is missing or a pattern matches nothing.
    """
    settings = {k: v for k, v in source.items() if k != "weight"}
    content: Any
    match source["kind"]:
        case "stdlib":
            content = [sys.version, [(name, size) for name, size, _ in stdlib_files()]]
        case "files":
            content = [_stamp(path) for path in expanded(source["paths"])]
        case "datasets":
            folder = Path(source["path"]).expanduser()
            files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
            content = [_stamp(path) for path in files]  # a hub name has none
        case _:
            content = custom_digest
    return {"settings": settings, "content": content}


def expanded(paths: Iterable[str]) -> list[Path]:
    """The files that paths and glob patterns name, in a fixed order, each once.

    Raises: DataError naming the path that is missing, no regular file, or matches nothing.
    """
    files: dict[Path, None] = {}
    for given in paths:
        text = os.path.expanduser(given)  # noqa: PTH111  (globs are not paths)
        if Path(text).is_file():
            files[Path(text).absolute()] = None
            continue
        if Path(text).is_dir():
            raise DataError(f"{given} is a folder; name its files, as in '{given}/**/*.txt'")
        if Path(text).exists():
            raise DataError(f"{given} is no regular file; correct the paths of this source")
        found = sorted(p for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207
        if not found:
            what = "matches no file" if glob.has_magic(text) else "does not exist"
            raise DataError(f"{given} {what}; correct the paths of this source")
        files.update(dict.fromkeys(Path(p).absolute() for p in found))
    return list(files)


def stdlib_files() -> list[tuple[str, int, Path]]:
    """(name, bytes, path) of the standard library's own .py files, by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in STDLIB_LEFT_OUT)
        for name in names:
            path = Path(folder) / name
            if name.endswith(".py") and path.is_file():
                files.append((path.relative_to(root).as_posix(), path.stat().st_size, path))
    return sorted(files)


def tokenizer_files(path: str) -> list[Path]:
    """The files of a pretrained tokenizer: one tokenizer.json, or those of a folder.

    Raises: DataError if there is no tokenizer at `path`.
    """
    given = Path(path).expanduser()
    if given.is_file():
        beside = given.with_name("tokenizer_config.json")
        return [given, beside] if beside.is_file() else [given]
    files = [given / name for name in TOKENIZER_FILES if (given / name).is_file()]
    names = {p.name for p in files}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        what = "has neither tokenizer.json nor vocab.json and merges.txt"
        raise DataError(
            f"data.tokenizer.path={path} {what if given.is_dir() else 'does not exist'}; "
            "name a Hugging Face tokenizer folder or a tokenizer.json"
        )
    return files


def _tokenizer_facts(data: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    settings = data["tokenizer"]
    if settings["kind"] != "pretrained":
        weights = [float(s["weight"]) for s in data["sources"].values()]
        return [settings, weights, list(facts.items())]
    files = tokenizer_files(settings["path"])
    return [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
