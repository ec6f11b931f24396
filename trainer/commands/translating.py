"""The two models of data.augment.back_translation, for commands that prepare examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection


def translator_of(config: Config) -> Callable[[Sequence[str]], list[str]] | None:
    """None if none is asked for."""
    data = config.data
    if not isinstance(data, ExamplesSection) or data.augment.back_translation is None:
        return None
    from trainer.models.round_trip import RoundTrip

    return RoundTrip(data.augment.back_translation)
