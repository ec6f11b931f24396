"""A resolved Config for tests, made as users make it: conf/ composed, then judged."""

from __future__ import annotations

from typing import Any

from launch.compose import compose
from trainer.config.explain import validate
from trainer.config.schema import Config
from trainer.config.sections.data import DataSection


def config(*overrides: str, data: dict[str, Any] | None = None) -> Config:
    """The default with overrides, then with single fields of the data section replaced."""
    made = validate(compose(list(overrides)).values)
    if data is None:
        return made
    section = DataSection.model_validate(made.data.model_dump() | data)
    return made.model_copy(update={"data": section})
