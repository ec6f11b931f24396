"""Settings of another version: what it did not know yet is taken from conf/ as it is now."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.config.explain import missing


def completed(values: dict[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """`values` with every setting that it lacks, as in `defaults()`; itself if it lacks none.

    What is of a choice that is not the default one stays missing; whoever validates will say it.
    """
    lacking = missing(values)
    if not lacking:
        return values
    known = defaults()
    for path in lacking:
        try:
            put(values, path, copy.deepcopy(at(known, path)))
        except (KeyError, TypeError):
            continue
    return values


def at(values: Any, path: Sequence[str]) -> Any:
    """Raises: KeyError, TypeError if there is no such place."""
    for name in path:
        values = values[name]
    return values


def put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = value
