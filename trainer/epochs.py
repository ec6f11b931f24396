"""How many steps some epochs are, once it is known how many rows there are to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.config.explain import validate
from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection
from trainer.plan import StorePlan


def in_steps(config: Config, stores: Sequence[StorePlan]) -> Config:
    """With steps.total as steps.epochs has it; unchanged without epochs, or without stores.

    An epoch is as many rows as all sources have together: each row once where there is one source,
    and else by the weights of data.sources. A step begun is made whole.
    Raises: ConfigError with every problem that so few or so many steps make.
    """
    epochs = config.steps.epochs
    if epochs is None or not stores:
        return config
    rows = sum(_rows(config, store) for store in stores)
    total = max(1, math.ceil(epochs * rows / config.batch.global_batch_size))
    values = config.model_dump(mode="json")
    values["steps"] |= {"total": total, "epochs": None}  # judged as if the number had been typed
    validate(values)
    steps = config.steps.model_copy(update={"total": total})
    return config.model_copy(update={"steps": steps})


def _rows(config: Config, store: StorePlan) -> int:
    """As the readers count them (data/packing.py, data/example_reader.py)."""
    if isinstance(config.data, ExamplesSection):
        return store.train_rows
    return max(0, (store.train_tokens - 1) // config.data.sequence_length)
