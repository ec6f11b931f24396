"""`longhaul verify resume`: interrupted and continued equals uninterrupted, bit for bit.

Runs of the user's settings, shrunk: one goes to its end; another loses a rank to SIGKILL in the
middle and is resumed, once as it was and once with another number of ranks. What is held against
the first run: weights and moments as loaded, samples, learning rates, randomness, losses, and the
last checkpoint. What ranks run is trainer/verify/resumed.py; the verdict, launch/verify/resumed.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.backends.local import LocalBackend
from launch.run.run_folder import create, new_attempt
from launch.stand import Standing, frozen_hash, plan_of
from launch.start import prepare, write_attempt
from launch.verify.resumed import Verdict, as_text, evidence, verdict_on
from launch.verify.shrink import shrunk
from trainer.config.schema import Config
from trainer.config.sections.training import PlainEngine
from trainer.errors import Exit
from trainer.plan import StorePlan
from trainer.records.json_file import read_lines, write_json
from trainer.records.run_files import RunFiles

_RANKS = "trainer.verify.resumed"
_DROPOUT = 0.1  # so that randomness that is not restored shows
_ROWS = 6  # of a micro-batch, on any number of ranks: then dropout is drawn alike
_LIMIT_S = 300.0


def verify_resume(
    config: Config, folder: Path, *, steps: int, as_json: bool, lose: str | None = None
) -> int:
    """Exit code: 0 equal, 78 not, 76 if a run failed by itself. `steps` of a run, at least 8.

    `lose`: what is thrown away at the resume, to see that it is found (trainer/verify/resumed.py).
    """
    small = _settings(config, folder, steps)
    stores = prepare(small)
    if isinstance(stores, int):
        return stores
    whole = _Run.make(small, stores)
    _stage(f"a run left alone: {steps} steps on {_ranks(small)}")
    if not whole.finish():
        return Exit.FAILED
    cut = _Run.make(_named(small, "interrupted"), stores)
    after = small_every(small) + 1
    _stage(f"the same again, until a rank is killed once step {after} is done and one is saved")
    killed_at = _kill_a_rank(cut, after_step=after)
    moved = _elsewhere(cut)
    verdicts = []
    for run in (cut, moved):
        if run is None:
            continue
        _stage(f"the killed run goes on, on {_ranks(run.config)}")
        if not run.finish(lose=lose):
            return Exit.FAILED
        _stage("its checkpoints, samples and losses are compared")
        verdicts.append(_verdict(whole, run))
    return _say(verdicts, killed_at=killed_at, steps=steps, as_json=as_json)


def _stage(text: str) -> None:
    """What happens now: a stage takes as long as a run takes to start, and some steps."""
    print(text, file=sys.stderr, flush=True)


def _ranks(config: Config) -> str:
    ranks = config.resources.ranks_per_node
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def small_every(config: Config) -> int:
    every = config.steps.save_every
    assert every != "auto"  # as _settings made it
    return every


def _settings(config: Config, folder: Path, steps: int) -> Config:
    every = steps // 4
    small = shrunk(config, folder, name="whole", steps=steps, fp32=False, dropout=_DROPOUT)
    ranks = min(2, config.resources.nodes * config.resources.ranks_per_node)
    # The step that is gone on from is looked at in the end; and it has to be there in the middle:
    # steps this small would all be over before the first save is, were a busy writer passed over.
    keep = {"keep_every": every, "when_busy": "wait"}
    return small.model_copy(
        update={
            "steps": small.steps.model_copy(update={"save_every": every}),
            "batch": small.batch.model_copy(update={"micro_batch_size": _ROWS}),
            "checkpoint": small.checkpoint.model_copy(update=keep),
            "resources": small.resources.model_copy(update={"ranks_per_node": ranks}),
        }
    )


def _named(config: Config, name: str) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


class _Run:
    """A run folder and its next attempts, each an agent of its own."""

    def __init__(self, files: RunFiles, config: Config, stores: tuple[StorePlan, ...]) -> None:
        self.files = files
        self.config = config
        self.stores = stores
        self.newest = 0

    @classmethod
    def make(cls, config: Config, stores: tuple[StorePlan, ...]) -> _Run:
        values = config.model_dump(mode="json")
        root = Path(config.run.root)
        files = create(root, config=values, frozen_hash=frozen_hash(config))
        return cls(files, config, stores)

    def attempt(self, *, lose: str | None = None) -> subprocess.Popen[bytes]:
        files = new_attempt(self.files)
        self.newest = files.number
        standing = Standing(self.config, self.files, self.stores)
        plan = plan_of(standing, attempt=files.number, run_id="verify")
        submission = LocalBackend(module=_RANKS).render(plan, run_folder=str(self.files.root))
        write_json(files.root / "resumed.json", {"lose": lose})
        write_attempt(files, plan, submission)
        argv = [sys.executable, *submission.argv[1:]]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self, *, lose: str | None = None) -> bool:
        """One more attempt; whether it came to the end."""
        code = _ended(self.attempt(lose=lose))
        if code == Exit.DONE:
            return True
        error = self.files.attempt(self.newest).error
        said = "no rank said why" if code is not None else f"not over after {_LIMIT_S:.0f} s"
        said = error.read_text(encoding="utf-8") if error.exists() else said
        print(f"attempt {self.newest} of {self.files.name} failed: {said}", file=sys.stderr)
        return False


def _elsewhere(cut: _Run) -> _Run | None:
    """The interrupted run again, to go on with one rank more; None where there can be but one."""
    if isinstance(cut.config.engine, PlainEngine):
        return None
    ranks = cut.config.resources.ranks_per_node + 1
    resources = cut.config.resources.model_copy(update={"ranks_per_node": ranks})
    config = _named(cut.config, "moved").model_copy(update={"resources": resources})
    root = cut.files.root.with_name("moved")
    shutil.copytree(cut.files.root, root)
    return _Run(RunFiles(root), config, cut.stores)


def _verdict(whole: _Run, run: _Run) -> Verdict:
    resumed = evidence(run.files, run.newest)
    at = run.files.attempt(run.newest).root / "loaded"
    step = str(resumed.first_step - 1)
    loaded = _different([str(run.files.root), step, str(at), step])
    config = run.config
    equal = config.resources == whole.config.resources or config.engine.kind == "canonical"
    last = _different([str(whole.files.root), str(run.files.root)]) if equal else []
    return verdict_on(
        evidence(whole.files, 1),
        resumed,
        loaded=loaded,
        last=last,
        precision=None if equal else config.precision.kind,
    )


def _say(verdicts: list[Verdict], *, killed_at: int, steps: int, as_json: bool) -> int:
    passed = all(one.passed for one in verdicts)
    if as_json:
        resumes = [one.as_json() for one in verdicts]
        value: dict[str, Any] = {"killed_after_step": killed_at, "steps": steps}
        print(json.dumps(value | {"resumes": resumes, "passed": passed}))
    else:
        print(f"a rank was killed after step {killed_at} of {steps}")
        for one in verdicts:
            print("\n".join(as_text(one)))
    return Exit.DONE if passed else Exit.STOP


def _kill_a_rank(run: _Run, *, after_step: int) -> int:
    """SIGKILL to the last rank once `after_step` is done and a checkpoint is there to go on from.

    Returns the newest step seen then. Saves end in the background: steps alone promise nothing.
    """
    agent = run.attempt()
    deadline = time.monotonic() + _LIMIT_S
    seen = 0
    while agent.poll() is None and time.monotonic() < deadline:
        seen = max((line["step"] for line in _steps(run.files)), default=0)
        if seen >= after_step and any(run.files.checkpoints.glob("step-*")):
            os.kill(max(_ranks_of(agent.pid)), signal.SIGKILL)
            break
        time.sleep(0.01)
    _ended(agent)
    return seen


def _ended(agent: subprocess.Popen[bytes]) -> int | None:
    """What it returned; None: it was told to stop, it took too long."""
    try:
        return agent.wait(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        agent.terminate()  # it ends its ranks
        agent.wait()
        return None


def _ranks_of(agent: int) -> list[int]:
    """Pids of the ranks below the agent, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(parent) == agent and _RANKS.encode() in words:
            found.append(int(entry.name))
    return found


def _steps(run: RunFiles) -> Iterator[dict[str, Any]]:
    return (line for line in read_lines(run.metrics) if line.get("kind") == "step")


def _different(places: list[str]) -> list[str]:
    """ "NAME KIND" of the tensors of two checkpoints that are not bit-identical."""
    module = "trainer.commands.checkpoint"
    argv = [sys.executable, "-m", module, "diff", *places, "--json"]
    return different_tensors(subprocess.run(argv, capture_output=True, check=True).stdout)


def different_tensors(said: bytes | str) -> list[str]:
    """From what `checkpoint diff --json` printed."""
    found = json.loads(said)
    only = [name for names in found["only_in"].values() for name in names]
    return only + [f"{t['name']} {t['kind']}" for t in found["tensors"] if t["differing"]]
