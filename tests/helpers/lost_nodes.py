"""A machine is lost without a word, twice over, under real ranks: how long until the run goes on.

    python -m tests.helpers.lost_nodes

One run of two machines with canonical reduction loses one's power; another run is cut off from a
machine whose agent and rank live on, and which is joined again. Both go on alone and are held
against the same run left alone. Prints the figures as one JSON object; exit code 3 and a
sentence where machines cannot be made. Drill D11 (launch/drills/machines.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.drills.oracle.digest import wrong_tensors
from tests.helpers.agent_process import wait_for
from tests.helpers.nodes import REPOSITORY, Lab, environment, machines, why_not
from tests.helpers.ssh_runs import SshRun
from trainer.errors import Exit
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.records.attempt import read_error, read_stop
from trainer.records.json_file import read_lines
from trainer.records.run_files import RunFiles

CANNOT = 3
_PATIENCE_S = 150.0
_SHOWN = 1e-14
_STEPS, _LOST_AT, _SILENT_S, _A_STEP_S = 40, 8, 3, 0.1
_SETTINGS = (
    "engine=canonical",
    "precision=fp32",
    "batch.micro_batch_size=1",
    "resources.ranks_per_node=1",
    f"steps.total={_STEPS}",
    "steps.save_every=5",
    "drills.enabled=true",
)


def main() -> int:
    if reason := why_not():
        print(reason, file=sys.stderr)
        return CANNOT
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", tempfile.mkdtemp(prefix="extensions-"))
    with tempfile.TemporaryDirectory(prefix="longhaul-lost-") as folder:
        there = Path(folder)
        with machines(there / "lab", 2) as lab:
            off = _begun(lab, there, "off")
            found = {"off": _lose(off, lab.node("node2").power_off)}
            off.until_over()
            lab.node("node2").boot()
            cut = _begun(lab, there, "cut")
            found["cut"] = _lose(cut, lab.node("node2").cut)
            lab.node("node2").join()
            found["cut"]["fenced_s"] = _until_fenced(cut)
            alone = _left_alone(off)
            for one in (off, cut):
                one.until_over()
                found[one.name]["wrong"] = _wrong(one, alone)
            found["cut"]["wrong"] += _not_fenced(cut)
    print(json.dumps(found))
    return 0


def _begun(lab: Lab, there: Path, name: str) -> SshRun:
    """On both machines, and some steps on its way."""
    slowly = as_text([Fault("step.begin", "sleep", value=_A_STEP_S, times=0)])
    more = {"TORCH_EXTENSIONS_DIR": os.environ["TORCH_EXTENSIONS_DIR"], ENVIRONMENT: slowly}
    folder = there / name
    folder.mkdir()
    one = SshRun(lab, folder, name, env=more, passed=(ENVIRONMENT,))
    loss = ("resources.min_nodes=1", f"launch.silent_s={_SILENT_S}", "launch.connect_timeout_s=2")
    one.train(*_SETTINGS, *loss)
    wait_for(lambda: _newest(one.run, attempt=1) >= _LOST_AT, seconds=_PATIENCE_S)
    return one


def _lose(one: SshRun, act: Callable[[], None]) -> dict[str, Any]:
    """Units: seconds from the loss until it was written down whose it was, and a new step."""
    begun = time.time()
    act()
    wait_for(lambda: _newest(one.run, attempt=2) > 0, seconds=_PATIENCE_S)
    first = next(line for line in _steps(one.run) if line["attempt"] == 2)
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert error.kind == "NodeLost", error
    assert "was lost with node node2" in error.message
    return {"found_s": error.time - begun, "recovered_s": first["time"] - begun}


def _until_fenced(one: SshRun) -> float:
    """Seconds until nothing of the attempt that lost a machine lives on it any more."""
    begun = time.monotonic()
    wait_for(lambda: not [x for x in one.processes() if _is_stale(x)], seconds=_PATIENCE_S)
    return time.monotonic() - begun


def _not_fenced(one: SshRun) -> list[str]:
    """Cut off, it reads the shared folder; without that it would go on until it missed its driver,
    and say so."""
    stop = read_stop(one.run.attempt(1).stop)
    return [] if stop is None else [f"what was cut off went on until {stop.detail}"]


def _is_stale(process: str) -> bool:
    """An agent or a rank of the first attempt; its driver goes on with the second."""
    return "--attempt 1 " in process and "launch.driver" not in process


def _left_alone(one: SshRun) -> RunFiles:
    """The same run on this machine, on both ranks from its beginning to its end."""
    words = [w for w in one.words(*_SETTINGS) if not w.startswith(("launch", "resources", "run."))]
    words += [f"run.root={one.folder / 'alone'}", "run.name=alone", "resources.device=cpu"]
    words += ["resources.ranks_per_node=2"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", *words],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert done.returncode == Exit.DONE, done.stdout
    return RunFiles(one.folder / "alone/alone")


def _wrong(one: SshRun, alone: RunFiles) -> list[str]:
    """What is not as if nothing had happened; the loss shown may differ in its 16th digit."""
    found = []
    ends = [(line["cause"], line["world_size"], line["exit_code"]) for line in one.attempts()]
    first, second, *later = ends
    back = [("preempt", 1, Exit.SAVED), (None, 2, Exit.DONE)]  # taken back before the end came
    if first[0] != "node" or [second, *later] not in ([(None, 1, Exit.DONE)], back):
        found.append(f"attempts ended as {ends}")
    words = [str(one.run.root), str(alone.root), "--json"]
    argv = [sys.executable, "-m", "trainer.commands.checkpoint", "diff", *words]
    said = subprocess.run(argv, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    found += wrong_tensors(json.loads(said.stdout), step=_STEPS)
    lines = _steps(one.run)
    by_step = {line["step"]: line for line in lines}
    theirs = {line["step"]: line for line in _steps(alone)}
    if by_step.keys() != theirs.keys():
        found.append(f"steps {sorted(by_step)}")
    elif max(abs(by_step[n]["loss"] - theirs[n]["loss"]) for n in theirs) > _SHOWN:
        found.append("losses differ")
    attempts = [line["attempt"] for line in lines]
    if attempts != sorted(attempts):
        found.append("the attempt before wrote again after the machine was lost")
    return found


def _newest(run: RunFiles, *, attempt: int) -> int:
    return max((x["step"] for x in _steps(run) if x["attempt"] == attempt), default=0)


def _steps(run: RunFiles) -> list[dict[str, Any]]:
    return [x for x in read_lines(run.metrics) if x.get("kind") == "step"]


if __name__ == "__main__":
    sys.exit(main())
