"""Real ranks that are killed, stopped and replaced: the same bits, and one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.base import spec_of
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.outcome import complete_checkpoints
from launch.run.run_folder import new_attempt
from tests.helpers.agent_process import until_stopped, wait_for
from tests.helpers.tiny_run import tiny_plan
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.plan import RunPlan, write_plan
from trainer.records.attempt import read_error
from trainer.records.json_file import read_lines
from trainer.records.run_files import RunFiles

pytestmark = pytest.mark.timeout(1500)  # three agents, one after another
STEPS = 10
_SETTINGS = (
    "resources.ranks_per_node=2",
    "steps.save_every=3",
    "checkpoint.keep_last=5",
    "evals=none",
    "resources.collective_timeout_s=300",
    "drills.enabled=true",
)
_LIMIT_S = 700  # of a slow machine; what is imported quietly waits for all else there


class Runs:
    """Agents on run folders of one tiny setting; ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: list[subprocess.Popen[bytes]] = []

    def plan(self, name: str, steps: int, *, attempt: int = 1) -> RunPlan:
        settings = (*_SETTINGS, f"steps.total={steps}")
        return tiny_plan(self.folder, *settings, name=name, attempt=attempt)

    def start(
        self, name: str, *, steps: int = STEPS, faults: Sequence[Fault] = ()
    ) -> tuple[RunFiles, subprocess.Popen[bytes]]:
        """The next attempt of a run, with a standby."""
        run = RunFiles(self.folder / "runs" / name)
        run.root.mkdir(parents=True, exist_ok=True)
        files = new_attempt(run)
        plan = self.plan(name, steps, attempt=files.number)
        files.submission.mkdir()
        (files.root / RANKS_FILE).write_text(spec_text(spec_of(plan)))
        write_plan(files.plan, plan)
        argv = [sys.executable, "-m", "launch.agent", str(run.root)]
        with (files.root / "agent.out").open("w") as out:
            agent = subprocess.Popen(
                [*argv, "--attempt", str(files.number)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=dict(os.environ) | ({ENVIRONMENT: as_text(faults)} if faults else {}),
            )
        self.agents.append(agent)
        return run, agent


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("restart"))
    yield made
    for agent in made.agents:
        agent.kill()
        agent.wait()


def steps_of(run: RunFiles, *, attempt: int | None = None) -> list[dict[str, Any]]:
    lines = (x for x in read_lines(run.metrics) if x["kind"] == "step")
    return [x for x in lines if attempt in (None, x["attempt"])]


def reached(run: RunFiles, step: int, *, attempt: int) -> None:
    wait_for(lambda: any(x["step"] >= step for x in steps_of(run, attempt=attempt)))


def family(run: RunFiles, agent: int) -> list[int]:
    """Everything the agent has started, from what stands in their environments."""
    mark = f"LONGHAUL_FAMILY={agent}.".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_killed_ranks_start_again_by_themselves_and_nothing_differs(runs: Runs) -> None:
    whole, agent = runs.start("whole")
    assert agent.wait(_LIMIT_S) == 0, (whole.attempt(1).root / "agent.out").read_text()
    kills = [
        Fault("step.begin", "kill", rank=rank, step=step, token=str(runs.folder / f"kill-{step}"))
        for step, rank in ((3, 1), (6, 0), (9, 1))
    ]
    cut, agent = runs.start("cut", faults=kills)
    said = cut.attempt(1).root / "agent.out"
    assert agent.wait(_LIMIT_S) == 0, said.read_text()
    assert said.read_text().count("killed by signal 9") == 3

    expected = {x["step"]: x["loss"] for x in steps_of(whole)}
    assert {x["step"]: x["loss"] for x in steps_of(cut)} == expected
    assert len(expected) == STEPS
    begins = [steps_of(cut, attempt=n)[0]["step"] for n in (1, 2, 3, 4)]
    assert begins[0] == begins[1] == 1  # nothing was saved before the first kill
    assert begins[2] in (4, 1)  # the save at step 3 goes on in the background
    argv = [sys.executable, "-m", "trainer.commands.checkpoint", "diff"]
    argv += [str(whole.root), str(cut.root), "--json"]
    found = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert not [t for t in found["tensors"] if t["differing"]]
    assert found["tensors"]


def test_an_attempt_that_slept_through_its_replacement_publishes_nothing(runs: Runs) -> None:
    run, old = runs.start("taken", steps=100_000)
    reached(run, 4, attempt=1)
    wait_for(lambda: complete_checkpoints(run) != [])
    asleep = [old.pid, *family(run, old.pid)]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    until_stopped(*asleep)
    before = len(steps_of(run, attempt=1))
    last = complete_checkpoints(run)[-1]

    _, new = runs.start("taken", steps=last + 4)
    assert new.wait(_LIMIT_S) == 0, (run.attempt(2).root / "agent.out").read_text()
    assert steps_of(run, attempt=2)[0]["step"] == last + 1
    kept = complete_checkpoints(run)

    for pid in asleep[1:]:  # the ranks go on, and nobody is there to end them
        os.kill(pid, signal.SIGCONT)
    wait_for(run.attempt(1).error.exists)
    error = read_error(run.attempt(1).error)
    assert error is not None
    assert (error.kind, error.exit_code) == ("Superseded", 78)
    assert "attempt 1 may no longer write to this run: attempt 2 (process" in error.message
    os.kill(old.pid, signal.SIGCONT)
    assert old.wait(300) == 78
    assert complete_checkpoints(run) == kept
    assert len(steps_of(run, attempt=1)) - before < 1000  # it learned at its next saves
    wait_for(lambda: not family(run, old.pid))
