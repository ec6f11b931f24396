"""Rules between sections: each is a few lines that yield Problems. Pure; no file is read."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.errors import Problem


def problems(config: Config) -> list[Problem]:
    """Everything that can be said without a machine, a tokenizer or a model folder."""
    return []
