"""Two nodes under a driver, real ranks: one node is lost with its memory, the neighbour has it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

from launch.base import spec_of
from launch.driver import drive
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.outcome import complete_checkpoints
from launch.run.run_folder import new_attempt
from tests.helpers.agent_process import wait_for
from tests.helpers.process_nodes import ProcessNodes
from tests.helpers.tiny_run import tiny_plan
from trainer.errors import Exit
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.plan import write_plan
from trainer.records.json_file import read_lines
from trainer.records.lineage import read_lineage
from trainer.records.memory_files import MemoryFiles
from trainer.records.run_files import RunFiles

STEPS = 12
_BEFORE = 5
# The node is lost long before the last step, and states are whole soon after theirs.
SLOWLY = Fault("step.begin", "sleep", value=0.3, times=0)
_SETTLES_S = 4.0  # what lies beside the steps has come to its end by then


def carried(folder: Path, name: str, shm: Path, *, lose: bool) -> RunFiles:
    """The run, driven to its end; the second node goes after some steps and comes back empty."""
    settings = (
        "resources.nodes=2",
        "resources.ranks_per_node=1",
        "steps.save_every=0",
        f"steps.total={STEPS}",
        "evals=none",
        "checkpoint.peer.every=1",
        f"checkpoint.peer.folder={shm}",
        "resources.collective_timeout_s=300",
        "drills.enabled=true",
    )
    run = RunFiles(folder / "runs" / name)
    run.root.mkdir(parents=True)
    files = new_attempt(run)
    plan = tiny_plan(folder, *settings, name=name, attempt=files.number)
    files.submission.mkdir()
    (files.root / RANKS_FILE).write_text(spec_text(spec_of(plan)))
    write_plan(files.plan, plan)
    files.agent.unlink(missing_ok=True)
    late = Fault(
        "step.begin", "sleep", step=_BEFORE + 1, value=2 * _SETTLES_S, token=str(folder / "late")
    )
    faults = as_text([late, SLOWLY] if lose else [SLOWLY])
    nodes = ProcessNodes("n0", "n1", env=dict(os.environ) | {ENVIRONMENT: faults})

    def meanwhile() -> None:
        wait_for(lambda: any(x["step"] >= _BEFORE for x in steps_of(run)), seconds=400)
        time.sleep(_SETTLES_S)
        nodes.lose("n1")
        shutil.rmtree(MemoryFiles(shm, f"{name}-id").node(1))
        nodes.present.append("n1")

    thread = threading.Thread(target=meanwhile) if lose else None
    if thread is not None:
        thread.start()
    outcome = drive(run, 1, nodes, env={})
    if thread is not None:
        thread.join()
    assert outcome.exit_code == Exit.DONE, outcome
    return run


def steps_of(run: RunFiles) -> list[dict[str, float]]:
    return [x for x in read_lines(run.metrics) if x["kind"] == "step"]


def test_a_lost_node_costs_a_step_or_two_and_no_bit(tmp_path: Path) -> None:
    shm = tmp_path / "shm"
    shm.mkdir()
    whole = carried(tmp_path, "whole", shm, lose=False)
    cut = carried(tmp_path, "cut", shm, lose=True)
    losses = {x["step"]: x["loss"] for x in steps_of(cut)}
    assert losses == {x["step"]: x["loss"] for x in steps_of(whole)}
    assert len(losses) == STEPS
    first = [x["step"] for x in steps_of(cut) if x["attempt"] == 1]
    second = [x["step"] for x in steps_of(cut) if x["attempt"] == 2]
    assert first[-1] - 3 <= second[0] - 1 <= first[-1] + 1, (first[-1], second[0])
    (lineage,) = [one for one in read_lineage(cut.lineage) if one.attempt == 2]
    assert lineage.place == "memory of node 0 (1 of 2 files from a neighbour's copy)"
    assert complete_checkpoints(cut) == [STEPS]
    assert list(shm.iterdir()) == []
