"""YAML says one thing many times with `&name` and `*name`: a few lines can mean millions of values.

OmegaConf copies what an alias stands for, so that nine lines of ten aliases each would take all
memory there is. Files of a user's own folders are measured before they are read in earnest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import Problem

_MOST_VALUES = 20_000
_MOST_BYTES = 1 << 20


def too_large(folders: Iterable[Path]) -> list[Problem]:
    """A problem for every file that means more than a configuration can."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            what = _problem(path)
            if what:
                found.append(Problem(str(path), what, ""))
    return found


def _problem(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError:
        return ""  # whoever needs it says what is wrong with it
    if len(text) > _MOST_BYTES:
        return f"is larger than {_MOST_BYTES:,} bytes, which no configuration is"
    if b"&" not in text or b"*" not in text:
        return ""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _values(node, {}) if node is not None else 0
    except RecursionError:
        return "refers to itself, or its brackets are nested too deep"
    except (yaml.YAMLError, UnicodeDecodeError):
        return ""
    if values > _MOST_VALUES:
        return f"means {values:,} values by its aliases; a configuration has a few hundred"
    return ""


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values the node means, aliases written out. Raises: RecursionError in a circle."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    inside = node.value if isinstance(node.value, list) else []
    parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
