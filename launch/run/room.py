"""Room for checkpoints, looked at before a run is made."""

from __future__ import annotations

from pathlib import Path

from trainer.config.sections.cloud import CloudLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan
from trainer.records.room import shortage
from trainer.records.run_files import RunFiles


def warn_of_little_room(plan: RunPlan, run: RunFiles | None) -> str:
    """What to say if not all checkpoints fit that the run keeps while it writes another; "".

    Raises: Refused if not even one does.
    """
    if isinstance(plan.config.launch, CloudLaunch):  # machines of their own, with their own disks
        return ""
    root = Path(plan.config.run.root)
    place = run.checkpoints if run is not None and run.checkpoints.exists() else root
    if short := shortage(place, plan.checkpoint_bytes):
        raise Refused(
            f"{short} for one checkpoint; make room (longhaul runs gc {root}), or choose another "
            "run.root"
        )
    kept = plan.config.checkpoint.keep_last
    missing = kept + 1 - len(list(place.glob("step-????????"))) if place != root else kept + 1
    if short := shortage(place, max(1, missing) * plan.checkpoint_bytes):
        return (
            f"{short} for the {kept} checkpoints that are kept (checkpoint.keep_last) and the next "
            "one: make room, or saves will fail"
        )
    return ""
