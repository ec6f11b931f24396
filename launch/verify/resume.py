"""`longhaul verify resume`: interrupted and continued equals uninterrupted, bit for bit.

Two runs of the user's settings, shrunk: one goes to its end; the other loses a rank to SIGKILL in
the middle and is resumed. Every later loss and every bit of the last checkpoint must be equal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.backends.local import LocalBackend
from launch.run_folder import create, new_attempt
from launch.start import Standing, frozen_hash, plan_of, prepare, write_attempt
from launch.verify.shrink import shrunk
from trainer.config.schema import Config
from trainer.errors import Exit
from trainer.plan import StorePlan
from trainer.records.json_file import read_lines
from trainer.records.run_files import RunFiles

_DROPOUT = 0.1  # so that randomness that is not restored shows
_LIMIT_S = 300.0


def verify_resume(config: Config, folder: Path, *, steps: int, as_json: bool) -> int:
    """Exit code: 0 equal, 78 not, 76 if a run failed by itself. `steps` of a run, at least 8."""
    save_every = steps // 4
    small = shrunk(config, folder, name="whole", steps=steps, fp32=False, dropout=_DROPOUT)
    ranks = min(2, config.resources.nodes * config.resources.ranks_per_node)
    small = small.model_copy(
        update={
            "steps": small.steps.model_copy(update={"save_every": save_every}),
            "batch": small.batch.model_copy(update={"micro_batch_size": 6}),
            "resources": small.resources.model_copy(update={"ranks_per_node": ranks}),
        }
    )
    stores = prepare(small)
    if isinstance(stores, int):
        return stores
    whole = _Run(small, stores)
    if whole.attempt().wait(timeout=_LIMIT_S) != Exit.DONE:
        return Exit.FAILED
    run = small.run.model_copy(update={"name": "interrupted"})
    cut = _Run(small.model_copy(update={"run": run}), stores)
    killed_at = _kill_a_rank(cut, after_step=save_every + 1)
    if cut.attempt().wait(timeout=_LIMIT_S) != Exit.DONE:
        return Exit.FAILED
    apart = _different_tensors(whole.files, cut.files)
    losses = (_losses(whole.files), _losses(cut.files, after_attempt=1))
    return judge(*losses, apart, steps=steps, killed_at=killed_at, as_json=as_json)


class _Run:
    """A run folder and its next attempts, each an agent of its own."""

    def __init__(self, config: Config, stores: tuple[StorePlan, ...]) -> None:
        values = config.model_dump(mode="json")
        root = Path(config.run.root)
        self.files = create(root, config=values, frozen_hash=frozen_hash(config))
        self._standing = Standing(config, self.files, stores)

    def attempt(self) -> subprocess.Popen[bytes]:
        files = new_attempt(self.files)
        plan = plan_of(self._standing, attempt=files.number, run_id="verify")
        submission = LocalBackend().render(plan, run_folder=str(self.files.root))
        write_attempt(files, plan, submission)
        argv = [sys.executable, *submission.argv[1:]]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill_a_rank(run: _Run, *, after_step: int) -> int:
    """SIGKILL to the last rank once `after_step` is done; the newest step seen then."""
    agent = run.attempt()
    deadline = time.monotonic() + _LIMIT_S
    seen = 0
    while agent.poll() is None and time.monotonic() < deadline:
        seen = max((line["step"] for line in _steps(run.files)), default=0)
        if seen >= after_step:
            os.kill(max(_ranks_of(agent.pid)), signal.SIGKILL)
            break
        time.sleep(0.01)
    agent.wait(timeout=_LIMIT_S)
    return seen


def _ranks_of(agent: int) -> list[int]:
    """Pids of the worker processes below the agent, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == agent and b"trainer.worker" in words:
            found.append(int(entry.name))
    return found


def _steps(run: RunFiles) -> Iterator[dict[str, Any]]:
    return (line for line in read_lines(run.metrics) if line.get("kind") == "step")


def judge(
    expected: Mapping[int, float],
    resumed: Mapping[int, float],
    apart: Sequence[str],
    *,
    steps: int,
    killed_at: int,
    as_json: bool,
) -> int:
    """Print the verdict. Losses by step; `apart`: tensors of the last checkpoints that differ."""
    first = min(resumed, default=0)
    wrong = [s for s in range(first, steps + 1) if resumed.get(s) != expected.get(s)]
    result = {
        "killed_after_step": killed_at,
        "resumed_at_step": first,
        "steps": steps,
        "different_losses": wrong,
        "different_tensors": list(apart),
        "passed": first > 1 and not wrong and not apart,
    }
    if as_json:
        print(json.dumps(result))
        return Exit.DONE if result["passed"] else Exit.STOP
    print(f"a rank was killed after step {killed_at}; attempt 2 went on at step {first} of {steps}")
    if first <= 1:
        print("it did not resume from a checkpoint")
    for step in wrong[:3]:
        print(f"step {step}: loss {resumed.get(step)!r} instead of {expected.get(step)!r}")
    for name in apart[:3]:
        print(f"the last checkpoints differ in {name}")
    if result["passed"]:
        print("every loss since, every weight and every moment is bit for bit the same")
    return Exit.DONE if result["passed"] else Exit.STOP


def _losses(run: RunFiles, *, after_attempt: int = 0) -> dict[int, float]:
    return {x["step"]: x["loss"] for x in _steps(run) if x["attempt"] > after_attempt}


def _different_tensors(a: RunFiles, b: RunFiles) -> list[str]:
    """Kinds of tensors of the newest checkpoints that are not bit-identical, by name."""
    module = "trainer.commands.checkpoint"
    argv = [sys.executable, "-m", module, "diff", str(a.root), str(b.root), "--json"]
    found = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    only = [name for names in found["only_in"].values() for name in names]
    return only + [f"{t['name']} {t['kind']}" for t in found["tensors"] if t["differing"]]
