"""longhaul stop RUN: save and stop; what was asked for is in stop.json."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from launch.attempts import read_lines_of
from launch.liveness import ProcessMark, is_alive, is_elsewhere
from launch.processes import send
from launch.ranks_spec import RANKS_FILE, read_spec
from launch.run_folder import DEFAULT_ROOT, attempts, find, running
from launch.status import status_of
from trainer.errors import Exit, Refused
from trainer.records.attempt import Stop, write_record
from trainer.records.run_files import AttemptFiles, RunFiles

_EPILOG = "example: longhaul stop first-run"
_MARGIN_S = 15.0  # the agent kills what does not stop in time, then writes its files


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul stop",
        description="Every rank saves at the same step and leaves. The run stays stopped "
        "until it is resumed.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", help="name or path")
    parser.add_argument("--no-wait", action="store_true", help="ask, and return at once")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_args(argv)
    run = find(given.run, root=Path(given.root))
    mark = running(run)
    if mark is None:
        status = status_of(run)
        print(f"{run.name} is not running ({status.why or status.state})")
        return Exit.DONE
    if is_elsewhere(mark):
        raise Refused(f"{run.name} runs on {mark.host}; stop it there")
    files = attempts(run)[-1]
    if not files.stop.exists():
        stop = Stop(cause="user", time=time.time(), detail="longhaul stop")
        write_record(files.stop, stop)
    send(mark.pid, signal.SIGTERM)
    if given.no_wait:
        print(f"{run.name} was asked to save and stop")
        return Exit.DONE
    return _wait(run, files, mark)


def _wait(run: RunFiles, files: AttemptFiles, mark: ProcessMark) -> int:
    grace_s = read_spec(files.root / RANKS_FILE).grace_s
    print(f"{run.name} saves and stops ...", flush=True)
    deadline = time.monotonic() + grace_s + _MARGIN_S
    while is_alive(mark) and not files.ended.exists():
        if time.monotonic() > deadline:
            print(f"{run.name} still runs after {grace_s + _MARGIN_S:.0f} s", file=sys.stderr)
            return Exit.FAILED
        time.sleep(0.1)
    _until_line(run, files.number)
    status = status_of(run)
    print(f"{run.name}: {status.why}")
    return Exit.DONE if status.state in ("stopped", "finished") else Exit.FAILED


def _until_line(run: RunFiles, attempt: int) -> None:
    """The agent writes the attempt's line a moment after ended.json."""
    for _ in range(20):
        if any(line.get("attempt") == attempt for line in read_lines_of(run)):
            return
        time.sleep(0.05)
