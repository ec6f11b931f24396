"""Real runs of the bench: started, broken and read through the doors that users have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from launch.drills.oracle.leftovers import Seen, left_over, look
from launch.drills.oracle.samples import Consumed
from launch.drills.reference import NAME, write_experiment
from launch.node.ranks import PIDS_FILE
from trainer.errors import LonghaulError
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.records.json_file import read_json, read_lines
from trainer.records.run_files import RunFiles

LIMIT_S = 120.0
_A_FAULT_S = 30.0
_SETTLE_S = 5.0  # for what a killed launcher leaves to be ended by its guard


class DrillFailed(LonghaulError):
    """The bench itself could not do what a drill needs."""


@dataclass(frozen=True)
class Said:
    """What a command returned. Units: seconds."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Running:
    """A command that runs. One mutable thing a drill holds."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)

    def wait(self, limit_s: float = LIMIT_S) -> Said:
        """Raises: DrillFailed if it does not end; nothing of it is left then."""
        try:
            out, err = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise DrillFailed(
                f"it did not end in {limit_s:g} s:\n{out[-2000:]}{err[-4000:]}"
            ) from None
        return Said(self.process.returncode, out, err, time.monotonic() - self.began)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


class Site:
    """A folder in which drills happen: corpus, settings, runs, and what they note.

    As a context, it ends what a drill that failed has left running.
    """

    def __init__(self, folder: Path) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.conf = write_experiment(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end_all()

    def end_all(self) -> None:
        """As a scheduler would: told to stop, then killed; launchers end their ranks."""
        left = [process for process in self._running if process.poll() is None]
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.communicate(timeout=_SETTLE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._running.clear()

    def run(self, name: str) -> RunFiles:
        return RunFiles(self.folder / "runs" / name)

    def begin(
        self,
        verb: str,
        name: str,
        *overrides: str,
        faults: Sequence[Fault] = (),
        env: dict[str, str] | None = None,
        **how: Any,
    ) -> Running:
        """`longhaul train` or `resume` of the run `name`, in a process of its own."""
        argv = [sys.executable, "-m", "launch", verb]
        if verb == "train":
            argv += [f"+experiment={NAME}", f"run.name={name}", *overrides]
            argv += [f"task.settings.folder={self.folder / 'samples' / name}"]
        else:
            argv += [str(self.run(name).root), *overrides]
        argv += ["--config-dir", str(self.conf)]
        return self.command(argv, env={ENVIRONMENT: as_text(faults), **(env or {})}, **how)

    def train(self, name: str, *overrides: str, faults: Sequence[Fault] = ()) -> Said:
        return self.begin("train", name, *overrides, faults=faults).wait(_patience(faults))

    def resume(self, name: str, *overrides: str, faults: Sequence[Fault] = ()) -> Said:
        return self.begin("resume", name, *overrides, faults=faults).wait(_patience(faults))

    def command(
        self, argv: Sequence[str], *, env: dict[str, str] | None = None, **how: Any
    ) -> Running:
        quiet = {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore::FutureWarning",
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
            ).rstrip(os.pathsep),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(
            list(argv),
            env=dict(os.environ) | quiet | (env or {}),
            text=True,
            **({"cwd": self.folder} | pipes | how),
        )
        self._running = [one for one in self._running if one.poll() is None] + [process]
        return Running(process)

    def json_of(self, module: str, *arguments: str) -> Any:
        """The JSON that `python -m MODULE ARGUMENTS` prints, whatever it returns.

        Raises: DrillFailed if it prints none.
        """
        said = self.command([sys.executable, "-m", module, *arguments]).wait()
        try:
            return json.loads(said.out)
        except json.JSONDecodeError:
            raise DrillFailed(f"{module} {' '.join(arguments)}: {said.err[-2000:]}") from None

    def token(self, name: str) -> str:
        folder = self.folder / "tokens"
        folder.mkdir(exist_ok=True)
        return str(folder / name)

    def look(self, name: str) -> Seen:
        return look(self.run(name).root, temporary=[self.temporary])

    def left_over(self, name: str, before: Seen) -> list[str]:
        """What is still there after a moment that a guard may take."""
        deadline = time.monotonic() + _SETTLE_S
        while (found := left_over(before, self.look(name))) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    # --- what a run has noted ------------------------------------------------------------------

    def steps(self, name: str) -> list[dict[str, Any]]:
        return [x for x in read_lines(self.run(name).metrics) if x.get("kind") == "step"]

    def saves(self, name: str) -> list[dict[str, Any]]:
        return [x for x in read_lines(self.run(name).metrics) if x.get("kind") == "save"]

    def attempts(self, name: str) -> list[dict[str, Any]]:
        return list(read_lines(self.run(name).attempts_log))

    def samples(self, name: str) -> list[Consumed]:
        found = []
        for path in (self.folder / "samples" / name).glob("*.jsonl"):
            found += [
                Consumed(x["rank"], x["world"], x["pid"], x["time"], tuple(x["ids"]))
                for x in read_lines(path)
            ]
        return found

    def fired(self, token: str) -> list[dict[str, Any]]:
        """When and where the faults of this token happened, oldest first."""
        path = Path(token)
        said = [json.loads(p.read_text()) for p in path.parent.glob(f"{path.name}.*")]
        return sorted(said, key=lambda one: float(one["time"]))

    # --- while it runs -------------------------------------------------------------------------

    def ranks(self, name: str) -> dict[int, int]:
        """Pids of the newest attempt's ranks, by rank; empty before they are started."""
        newest = max(self.run(name).attempts.iterdir())
        try:
            return {int(rank): pid for rank, pid in read_json(newest / PIDS_FILE).items()}
        except FileNotFoundError:
            return {}

    def until(self, name: str, running: Running, *, step: int) -> None:
        """Until the run has made this step. Raises: DrillFailed if it ends or stalls before."""

        def made() -> bool:
            return any(x["step"] >= step for x in self.steps(name))

        wait_for(made, while_running=running, what=f"step {step} of {name}")


def _patience(faults: Sequence[Fault]) -> float:
    """A run that is broken again and again starts as often, within one command."""
    return LIMIT_S + _A_FAULT_S * len(faults)


def wait_for(
    condition: Callable[[], bool], *, while_running: Running, what: str, limit_s: float = LIMIT_S
) -> None:
    """Raises: DrillFailed if the process ends first, or time does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if while_running.process.poll() is not None and not condition():
            out, err = while_running.process.communicate()
            raise DrillFailed(f"waited for {what}, but it ended:\n{out[-2000:]}{err[-4000:]}")
        if time.monotonic() > deadline:
            while_running.process.kill()
            raise DrillFailed(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(0.01)
