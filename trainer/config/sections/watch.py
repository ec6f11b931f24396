"""When a rank counts as hung. Units: seconds, but for `factor`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.sections.base import Section

Seconds = Annotated[float, Field(gt=0, examples=[300])]


class WatchSection(Section):
    """A phase may take `factor` times the longest that the run has shown, and never less than
    its floor below."""

    enabled: bool
    factor: Annotated[float, Field(ge=1)]
    start_s: Seconds  # imports, meeting the others, building: each
    load_s: Seconds  # the checkpoint or the starting values; large models get more, by their bytes
    first_step_s: Seconds  # each phase of an attempt's first step: compiling, warming up
    step_s: Seconds  # each phase of any other step
    save_s: Seconds
    eval_s: Seconds
    grace_s: Annotated[float, Field(ge=0, examples=[0])]  # from the finding to SIGKILL

    @property
    def floors(self) -> dict[str, float]:
        """By setting."""
        return {
            name: getattr(self, name)
            for name in ("start_s", "load_s", "first_step_s", "step_s", "save_s", "eval_s")
        }
