"""Labelled examples as the data of a run: sources, what is held out, labels, rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section
from trainer.config.sections.data import PretrainedTokenizer
from trainer.config.sections.examples import AuditSettings, AugmentSettings, RecordsSource


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
    # name of a source -> its examples for evaluation; where there is none, held_out_fraction
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
