"""longhaul stop RUN: save and stop; what was asked for is in stop.json."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from launch.node.ranks_spec import RANKS_FILE, read_spec
from launch.run.attempts import read_lines_of
from launch.run.liveness import is_alive, is_elsewhere
from launch.run.run_folder import DEFAULT_ROOT, find
from launch.run.standing import Standing, standing
from launch.run.status import status_of
from launch.run.stopping import ask_to_stop
from launch.sweep.folder import find_sweep
from launch.sweep.stopping import stop_sweep
from trainer.errors import Exit
from trainer.records.run_files import RunFiles

_EPILOG = "example: longhaul stop first-run"
_ASK_EVERY_S = 5.0
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
    if (sweep := find_sweep(given.run, root=Path(given.root))) is not None:
        return stop_sweep(sweep, wait=not given.no_wait)
    run = find(given.run, root=Path(given.root))
    now = standing(run)
    if not now.may_be_active or now.files is None:
        status = status_of(run, now.job)
        print(f"{run.name} is not running ({status.why or status.state})")
        return Exit.DONE
    ask_to_stop(run, now, detail="longhaul stop")
    if given.no_wait:
        print(f"{run.name} was asked to save and stop")
        return Exit.DONE
    return _wait(run, now)


def _wait(run: RunFiles, now: Standing) -> int:
    assert now.files is not None
    files, grace_s = now.files, read_spec(now.files.root / RANKS_FILE).grace_s
    print(f"{run.name} saves and stops ...", flush=True)
    deadline = time.monotonic() + grace_s + _MARGIN_S
    asked = time.monotonic()
    while not files.ended.exists():
        if now.mark is not None and not is_elsewhere(now.mark) and not is_alive(now.mark):
            break
        if now.job is not None and time.monotonic() - asked > _ASK_EVERY_S:
            asked = time.monotonic()
            if not standing(run).may_be_active:
                break
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
