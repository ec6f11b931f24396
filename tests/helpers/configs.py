"""A resolved Config for tests, made as users make it: conf/ composed, then judged.

Hydra needs a tenth of a second a time, and tests ask for hundreds of configurations: choices are
composed once each, and plain `key=value` overrides are then set in the result.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import yaml

from launch.compose import compose
from launch.settings.choices import Folders
from trainer.config.explain import validate
from trainer.config.schema import Config
from trainer.config.sections.data import DataSection
from trainer.errors import ConfigError

_PLAIN = re.compile(r"\+*([\w.]+)=([\w./-]+|\[[\w./,-]*\])")
_FOLDERS = Folders.find()


def config(*overrides: str, data: dict[str, Any] | None = None) -> Config:
    """The default with overrides, then with single fields of the data section replaced."""
    made = validate(values(*overrides))
    if data is None:
        return made
    section = DataSection.model_validate(made.data.model_dump() | data)
    return made.model_copy(update={"data": section})


def values(*overrides: str) -> dict[str, Any]:
    """What `compose` gives for overrides of settings that exist."""
    matches = {text: _PLAIN.fullmatch(text) for text in overrides}
    settings = {
        text: match
        for text, match in matches.items()
        if match is not None and not _FOLDERS.is_group(match[1])
    }
    rest = tuple(text for text in overrides if text not in settings)
    needed = _needed(rest)
    if not needed <= {match[1] for match in settings.values()}:
        return copy.deepcopy(_composed(overrides))  # raises what is wrong with it
    made = copy.deepcopy(_composed((*rest, *(f"{key}=later" for key in sorted(needed)))))
    for text in overrides:  # in their order: one that comes twice wins twice
        match = settings.get(text)
        if match is None:
            continue
        *parents, last = match[1].split(".")
        section = made
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(match[2])
    return made


@cache
def _needed(overrides: tuple[str, ...]) -> frozenset[str]:
    """Settings that these choices do not know by themselves, and all else that is wrong."""
    try:
        _composed(overrides)
    except ConfigError as e:
        return frozenset(p.where for p in e.problems)
    return frozenset()


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose(overrides).values
