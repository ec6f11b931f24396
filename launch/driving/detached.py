"""A driver as a process of this machine that outlives the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launch.base import Submission, spec_of
from launch.ending import say_ending
from launch.node.processes import send
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.run.job_record import Job
from launch.run.liveness import is_alive, is_elsewhere, job_of_mark, read_mark
from launch.run.run_folder import typed_name
from trainer.errors import Exit
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles, RunFiles

DRIVER_LOG = "driver.log"  # under the run's folder
_BEGIN_S = 60.0  # for the driver to take the attempt


def driver_words(run_folder: str, attempt: int) -> tuple[str, ...]:
    return ("python", "-m", "launch.driver", run_folder, "--attempt", str(attempt))


def render_driven(plan: RunPlan, *, run_folder: str, module: str) -> Submission:
    """Of every place whose nodes a driver on this machine carries a run on. Pure."""
    return Submission(
        argv=driver_words(run_folder, plan.attempt),
        files={RANKS_FILE: spec_text(spec_of(plan, module=module))},
    )


def detach(
    files: AttemptFiles, argv: tuple[str, ...], *, where: str, env: Mapping[str, str] | None = None
) -> int:
    """Start it and return once it carries the attempt; the exit code of the command.

    `where` the ranks are, for people. `env`: besides this process's.
    """
    run_folder = files.root.parent.parent
    log = run_folder / DRIVER_LOG
    with log.open("ab") as output:
        log.chmod(0o600)
        process = subprocess.Popen(
            [sys.executable, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=None if env is None else dict(os.environ) | dict(env),
        )
    code = _until_taken(process, files)
    if code is not None:
        print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
        return code
    name = typed_name(RunFiles(run_folder))
    print(
        f"{run_folder.name}: attempt {files.number} begins on {where}, carried by process "
        f"{process.pid} of this machine, which logs to {log}\n"
        f"  longhaul status {name}   longhaul logs {name} -f   longhaul stop {name}"
    )
    return Exit.DONE


def stay(run_folder: Path, attempt: int) -> int:
    """Drive it in this process; the exit code of the run."""
    from launch.driver import drive
    from launch.driving.places import place_of

    run = RunFiles(run_folder)
    nodes, env = place_of(run.attempt(attempt))
    code = drive(run, attempt, nodes, env=env).exit_code
    say_ending(run, run.attempt(attempt), code)
    return code


def _until_taken(process: subprocess.Popen[bytes], files: AttemptFiles) -> int | None:
    """None once the driver has the attempt, or did its work already; its code if it failed."""
    deadline = time.monotonic() + _BEGIN_S
    while time.monotonic() < deadline:
        mark = read_mark(files.agent)
        if mark is not None and mark.pid == process.pid:
            return None
        if (code := process.poll()) is not None:
            return code or None
        time.sleep(0.02)
    process.kill()
    return Exit.FAILED


def job_of(files: AttemptFiles) -> Job:
    """How an attempt stands whose driver is a process somewhere."""
    return job_of_mark(files.agent, who="driver")


def stop_driver(files: AttemptFiles) -> None:
    """The driver looks for stop.json, wherever it runs; a signal makes it look at once."""
    mark = read_mark(files.agent)
    if mark is not None and not is_elsewhere(mark) and is_alive(mark):
        send(mark.pid, signal.SIGTERM)
