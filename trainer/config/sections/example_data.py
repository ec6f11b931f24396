"""Labelled examples as the data of a run: sources, what is held out, labels, rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.sections.base import Section
from trainer.config.sections.data import PretrainedTokenizer
from trainer.config.sections.examples import AuditSettings, AugmentSettings, RecordsSource

# Which files they are; all else that a held-out entry does not say is as its source says.
_OF_FILES = frozenset({"paths", "target_paths", "split", "weight"})


class ExampleSource(RecordsSource):
    # share of rows, relative to the other sources
    weight: Annotated[float, Field(gt=0)] = 1.0


class ExamplesSection(Section):
    """Names that text data has as well mean the same as there."""

    kind: Literal["examples"]
    # most tokens of a row; longer examples are cut
    sequence_length: Annotated[int, Field(ge=2, le=1 << 30, examples=[256])]
    # several examples share a row, best-fit; attention never crosses them
    packing: bool
    sources: Annotated[dict[str, ExampleSource], Field(min_length=1)]
    # name of a source -> its examples for evaluation, read as the source is unless it says
    # otherwise; where there is none, held_out_fraction
    held_out: dict[str, RecordsSource]
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]  # share of a source's examples
    # every label there is, in the order of the model's outputs; null: those of the data, sorted
    labels: tuple[str, ...] | None
    augment: AugmentSettings
    audit: AuditSettings
    tokenizer: PretrainedTokenizer
    store_root: str  # where example stores are kept; shared by runs
    shard_tokens: Annotated[int, Field(ge=1_000)]  # tokens of one store file
    num_workers: Annotated[int, Field(ge=0)]  # processes of the preparation; 0: one a core
    prefetch_steps: Annotated[int, Field(ge=0)]  # steps read ahead by a thread; 0: none

    @model_validator(mode="before")
    @classmethod
    def _read_alike(cls, values: Any) -> Any:
        """Scores would be of other texts if columns were joined for training alone."""
        sources = values.get("sources") if isinstance(values, dict) else None
        held_out = values.get("held_out") if isinstance(values, dict) else None
        if not isinstance(sources, dict) or not isinstance(held_out, dict):
            return values
        made = {}
        for name, entry in held_out.items():
            source = sources.get(name)
            if isinstance(entry, dict) and isinstance(source, dict):
                entry = {k: v for k, v in source.items() if k not in _OF_FILES} | entry
            made[name] = entry
        return {**values, "held_out": made}
