"""What happens after an attempt has failed, and who may go on with a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.sections.base import Section

Restarts = Annotated[int, Field(ge=0)]  # allowed since the run was last finished or looked at


class RestartSection(Section):
    enabled: bool  # whether the ranks are started again without being asked
    standby: (
        bool  # whether a process with all imports waits to become the ranks of the next attempt
    )
    max_idle: Annotated[int, Field(ge=1)]  # failures in a row without a newer checkpoint
    crash: Restarts
    hang: Restarts
    node: Restarts
    oom: Restarts
    smaller_micro_batch: bool = True  # half of it after memory ran out; the batch stays
    hardware: Restarts
    wait_s: Annotated[float, Field(gt=0)]  # for enough nodes to be there (ssh, Ray)
    lease_s: Annotated[float, Field(gt=0)]  # an owner elsewhere that is silent so long is dead
