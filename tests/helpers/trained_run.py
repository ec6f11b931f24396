"""A run folder that was trained to its end, in this process."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.helpers.tiny_run import tiny_run
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import RunPlan, read_plan, write_plan
from trainer.records.run_files import RunFiles

_PLAIN = ("engine=plain", "resources.ranks_per_node=1", "precision=fp32", "steps.save_every=3")


def trained_run(folder: Path, *overrides: str, name: str = "tiny") -> RunFiles:
    """Six steps of one plain rank, checkpoints of steps 3 and 6."""
    run = tiny_run(folder, [*_PLAIN, *overrides], name=name)
    return _trained(run, read_plan(run.attempt(1).plan))


def trained_by(plan: RunPlan, folder: Path) -> RunFiles:
    """`folder`: the run's, to be made. The plan's engine is one of a process alone."""
    run = RunFiles(folder)
    run.attempt(1).root.mkdir(parents=True)
    write_plan(run.attempt(1).plan, plan)
    return _trained(run, plan)


def _trained(run: RunFiles, plan: RunPlan) -> RunFiles:
    run.run_json.write_text("{}")
    job, state = build_job(plan, Alone(), run=run, stop=threading.Event(), startup=StartUp())
    assert fit(job, state) == "finished"
    wind_up(job, state.step)
    return run
