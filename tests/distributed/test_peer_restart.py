"""A real agent and real ranks: a killed rank goes on from memory, and no bit differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launch.base import spec_of
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.run.run_folder import new_attempt
from tests.helpers.tiny_run import tiny_plan
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.plan import write_plan
from trainer.records.json_file import read_lines
from trainer.records.lineage import read_lineage
from trainer.records.run_files import RunFiles

pytestmark = pytest.mark.timeout(1500)  # three agents, one after another
STEPS = 24
SLOWLY = Fault("step.begin", "sleep", value=0.1, times=0)
_LIMIT_S = 700  # of a slow machine; what is imported quietly waits for all else there


def begin(
    folder: Path, name: str, *overrides: str, faults: Sequence[Fault] = ()
) -> tuple[RunFiles, subprocess.Popen[bytes]]:
    """An agent on a run of two ranks that saves to the disk at its end and never before.

    A step takes longer than what runs beside it, however busy the machine is.
    """
    settings = (
        "resources.ranks_per_node=2",
        "steps.save_every=0",
        f"steps.total={STEPS}",
        "evals=none",
        "resources.collective_timeout_s=300",
        "drills.enabled=true",
        *overrides,
    )
    run = RunFiles(folder / "runs" / name)
    run.root.mkdir(parents=True)
    files = new_attempt(run)
    plan = tiny_plan(folder, *settings, name=name, attempt=files.number)
    files.submission.mkdir()
    (files.root / RANKS_FILE).write_text(spec_text(spec_of(plan)))
    write_plan(files.plan, plan)
    with (files.root / "agent.out").open("w") as out:
        argv = [sys.executable, "-m", "launch.agent", str(run.root), "--attempt", "1"]
        env = dict(os.environ) | {ENVIRONMENT: as_text([*faults, SLOWLY])}
        return run, subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env=env)


def _kill(folder: Path, step: int, rank: int) -> tuple[Fault, Fault]:
    """Long after the step before: what is beside the steps has come to its end by then."""
    late = Fault("step.begin", "sleep", step=step, value=4.0, token=str(folder / f"late-{step}"))
    token = str(folder / f"kill-{step}")
    return late, Fault("step.begin", "kill", rank=rank, step=step, token=token)


def steps_of(run: RunFiles, *, attempt: int | None = None) -> list[dict[str, Any]]:
    lines = (x for x in read_lines(run.metrics) if x["kind"] == "step")
    return [x for x in lines if attempt in (None, x["attempt"])]


def test_a_killed_rank_costs_a_step_or_two_without_a_checkpoint(tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    whole, agent = begin(tmp_path, "whole")
    assert agent.wait(_LIMIT_S) == 0, (whole.attempt(1).root / "agent.out").read_text()
    kills = [fault for step, rank in ((7, 1), (15, 0)) for fault in _kill(tmp_path, step, rank)]
    kept = ("checkpoint.peer.every=1", f"checkpoint.peer.folder={shm}")
    cut, agent = begin(tmp_path, "cut", *kept, faults=kills)
    said = cut.attempt(1).root / "agent.out"
    assert agent.wait(_LIMIT_S) == 0, said.read_text()
    assert "or from a later step that is still in memory" in said.read_text()

    first = [[x["step"] for x in steps_of(cut, attempt=n)] for n in (1, 2, 3)]
    for before, after in pairwise(first):  # a step takes less than the process beside it here
        assert before[-1] - 3 <= after[0] - 1 <= before[-1] + 1, (before[-1], after[0])
    losses = {x["step"]: x["loss"] for x in steps_of(cut)}
    assert losses == {x["step"]: x["loss"] for x in steps_of(whole)}
    assert len(losses) == STEPS
    argv = [sys.executable, "-m", "trainer.commands.checkpoint", "diff"]
    argv += [str(whole.root), str(cut.root), "--json"]
    found = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert found["tensors"]
    assert not [t for t in found["tensors"] if t["differing"]]
    lineage = read_lineage(cut.lineage)
    assert [one.place for one in lineage] == ["memory of node 0"] * 2
    assert [one.written_by for one in lineage] == [1, 2]
    assert list(shm.iterdir()) == []  # given back
