"""Which numbers of several plans are not the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What is another in every run, and says nothing of how it trained.
_ALWAYS = {"run_id", "attempt", "config.run.name"}


@dataclass(frozen=True)
class Differing:
    """`values`: a text a plan, in their order; a dash where it has none."""

    key: str
    values: tuple[str, ...]


def differing(plans: Mapping[str, Mapping[str, Any]]) -> list[Differing]:
    """By key; settings (config.*) are named as one types them."""
    leaves = [flat(plan) for plan in plans.values()]
    found = []
    for key in sorted({key for one in leaves for key in one} - _ALWAYS):
        values = tuple(_text(one[key]) if key in one else "-" for one in leaves)
        if len(set(values)) > 1:
            found.append(Differing(key.removeprefix("config."), values))
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of leaves; a list is a leaf, unless it holds mappings."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            made |= flat(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for number, one in enumerate(value):
                made |= flat(one, f"{key}.{number}.")
        else:
            made[key] = value
    return made


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
