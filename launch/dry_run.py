"""What an attempt would write and run, for people and for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from launch.base import Submission, spec_of
from launch.cloud.sky_task import NODE
from launch.machine import LOOPBACK
from launch.plan_command import as_text as numbers_of
from trainer.changes import Change
from trainer.config.sections.cloud import CloudLaunch
from trainer.plan import RunPlan


@dataclass(frozen=True)
class DryRun:
    plan: RunPlan
    submission: Submission
    run_folder: str
    is_new: bool
    finished_at: int  # 0: not finished
    needs_prepare: bool
    differences: Sequence[Change] = ()  # from the run's newest attempt
    differences_text: str = ""


def as_json(what: DryRun) -> str:
    """Every byte that would be written."""
    return json.dumps(
        {
            "run_folder": what.run_folder,
            "is_new": what.is_new,
            "finished_at": what.finished_at,
            "needs_prepare": what.needs_prepare,
            "differences": [asdict(one) for one in what.differences],
            "plan": what.plan.model_dump(mode="json"),
            "submission": {
                "argv": list(what.submission.argv),
                "then": [list(argv) for argv in what.submission.then],
                "env": dict(what.submission.env),
                "files": dict(what.submission.files),
            },
        },
        indent=2,
    )


def as_text(what: DryRun) -> str:
    plan = what.plan
    if what.finished_at:
        return f"{plan.config.run.name} is finished at step {what.finished_at}: nothing to do"
    about = "a new run" if what.is_new else "goes on"
    lines = [f"{plan.config.run.name}: {about}, attempt {plan.attempt}", ""]
    if what.differences_text:
        lines += [*what.differences_text.splitlines(), ""]
    lines += numbers_of(plan, ()).splitlines()
    lines += ["", "would write"]
    lines += [f"  {path}" for path in _paths(what)]
    for name, text in what.submission.files.items():
        lines += ["", f"{what.run_folder}/{_attempt(plan)}/{name}"]
        lines += [f"  {line}" for line in text.splitlines()]
    lines += ["", "would run", *(f"  {line}" for line in _commands(what))]
    lines += ["", "nothing was written; --json prints plan.json in full"]
    return "\n".join(lines)


def _attempt(plan: RunPlan) -> str:
    return f"attempts/{plan.attempt:04d}"


def _paths(what: DryRun) -> list[str]:
    first = ["run.json"] if what.is_new else []
    attempt = _attempt(what.plan)
    names = [*first, "owner", f"{attempt}/plan.json"]
    return [f"{what.run_folder}/{name}" for name in names]


def _commands(what: DryRun) -> list[str]:
    spec, plan = spec_of(what.plan), what.plan
    lines = []
    if what.needs_prepare:
        lines.append("python -m trainer.commands.prepare CONFIG.json --result RESULT.json")
    lines += [shlex.join(argv) for argv in (what.submission.argv, *what.submission.then)]
    if isinstance(plan.config.launch, CloudLaunch):
        folder = f"{plan.config.launch.run_root}/{plan.config.run.name}"
        there = f"{plan.world_size} ranks, run folder {folder}"
        return [*lines, "which starts, on each machine:", f"  python -m {NODE}   {there}"]
    worker = ("python", "-m", spec.module, what.run_folder, "--attempt", str(plan.attempt))
    port = spec.rendezvous_port or "(a free one)"
    first = LOOPBACK if spec.nodes == 1 else "(the first node)"
    lines.append("which starts, for each rank:")
    lines.append(
        f"  RANK=0..{plan.world_size - 1} WORLD_SIZE={plan.world_size} "
        f"LOCAL_RANK=0..{spec.ranks_per_node - 1} MASTER_ADDR={first} MASTER_PORT={port} "
        f"OMP_NUM_THREADS={spec.threads_per_rank}"
    )
    lines.append(f"  {shlex.join(worker)}")
    return lines
