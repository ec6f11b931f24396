"""Who set each setting: the file and line, or the override. Pure but for reading the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.settings.choices import Folders


@dataclass(frozen=True)
class Layer:
    """One file as merged: its name below conf/, and the section its keys land in ('': the root)."""

    config_path: str
    package: str


@dataclass(frozen=True)
class Assignment:
    """One `key=value` of the command line."""

    key: str
    value: Any
    text: str


def provenance(
    layers: Sequence[Layer],
    assignments: Sequence[Assignment],
    choices: dict[str, str],
    *,
    folders: Folders,
) -> dict[str, str]:
    """Dotted setting -> who set it last. `choices`: group -> the override that chose its file."""
    found: dict[str, str] = {}
    for layer in layers:
        path = folders.file(layer.config_path)
        if path is None:
            continue
        group = layer.config_path.rpartition("/")[0]
        chosen = f" (chosen by {choices[group]})" if group in choices else ""
        for key, line in lines_of(path, "" if layer.package == "_global_" else layer.package):
            found[key] = f"{folders.display(path)} line {line}{chosen}"
    for assignment in assignments:
        for key in _keys(assignment.key, assignment.value):
            found[key] = f"command line: {assignment.text}"
    return found


def _keys(prefix: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _keys(f"{prefix}.{key}", below)
    else:
        yield prefix


def lines_of(path: Path, package: str) -> Iterator[tuple[str, int]]:
    """Dotted settings of a YAML file with their line numbers, counted from 1."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=loader)
    if isinstance(root, yaml.MappingNode):
        yield from _lines(root, package, is_root=True)


def _lines(node: Any, prefix: str, *, is_root: bool = False) -> Iterator[tuple[str, int]]:
    import yaml

    for key, value in node.value:
        if is_root and key.value == "defaults":
            continue
        dotted = f"{prefix}.{key.value}" if prefix else str(key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _lines(value, dotted)
        else:
            yield dotted, key.start_mark.line + 1
