"""What is done about numbers that cannot be right."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class GuardSection(Section):
    """Units: optimizer steps."""

    non_finite: Literal["skip", "stop"]  # loss or gradient norm; neither is ever applied
    spike: Literal["skip", "log", "ignore"]  # far above what the last steps had
    spike_sigmas: Annotated[float, Field(gt=0)]  # robust standard deviations above the median
    window: Annotated[int, Field(ge=8)]  # accepted steps that a step is compared with
    max_skips: Positive  # within skip_window: then back to a checkpoint, without those data
    skip_window: Positive
    max_rewinds: Count  # in a row; then the run stops (exit 78)
    replica_check_every: Count  # do all ranks hold the same weights; also before saves; 0: never
    max_incidents: Count  # of a kind, written to incidents/ for longhaul replay
