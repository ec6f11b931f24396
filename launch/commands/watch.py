"""longhaul watch [RUN ...]: runs while they run, in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.live.frame import frame
from launch.live.screen import Screen, size_now
from launch.live.watching import Watching
from launch.run.run_folder import DEFAULT_ROOT, find, list_runs
from launch.run.standing import standings
from launch.sweep.folder import SweepFiles, find_sweep
from trainer.errors import Refused
from trainer.records.run_files import RunFiles

_MOST = 6  # runs that are looked at when none is named
_SWEEP_S = 5.0  # between two readings of all trials
_EPILOG = "Ctrl-C leaves; the runs go on. example: longhaul watch first-run --curve loss grad_norm"

Frame = Callable[[tuple[int, int]], list[str]]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul watch",
        description="Runs while they run: how they stand, their curves, where every rank is.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", nargs="*", help="names or paths, or one sweep; else what runs now")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    parser.add_argument("--curve", nargs="+", default=["loss"], metavar="METRIC")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
    parser.add_argument("--once", action="store_true", help="one frame, without a terminal")
    given = parser.parse_args(argv)
    if not 0.2 <= given.every <= 3600:
        raise Refused(f"--every {given.every:g}: seconds between two frames, 0.2 to 3600")
    root = Path(given.root)
    sweep = find_sweep(given.run[0], root=root) if len(given.run) == 1 else None
    made = _of_sweep(sweep) if sweep else _of_runs(_chosen(given.run, root), given.curve)
    if given.once or not sys.stdout.isatty():
        print("\n".join(made(size_now())))
        return 0
    try:
        with Screen(sys.stdout) as screen:
            while True:
                size = size_now()
                screen.show(made(size), size)
                time.sleep(given.every)
    except KeyboardInterrupt:
        print("\n".join(made(size_now())))  # what was seen last stays
        return 0


def _chosen(names: list[str], root: Path) -> list[RunFiles]:
    if names:
        return [find(name, root=root) for name in names]
    runs = list_runs(root)
    there = [run for run, at in zip(runs, standings(runs), strict=True) if at.may_be_active]
    if not there:
        raise Refused(f"nothing runs under {root}/; name a run to look at one that is over")
    return there[-_MOST:]


def _of_runs(runs: list[RunFiles], curves: list[str]) -> Frame:
    watching = Watching(runs, curves=curves)

    def made(size: tuple[int, int]) -> list[str]:
        views = watching.look(time.monotonic())
        return frame(views, size=size, ascii_only=not _shows_dots())

    return made


def _of_sweep(files: SweepFiles) -> Frame:
    from launch.sweep.table import as_text, status_of_sweep

    shown: list[str] = []
    at: float | None = None

    def made(size: tuple[int, int]) -> list[str]:
        nonlocal shown, at
        if at is None or time.monotonic() - at >= _SWEEP_S:
            shown, at = (
                as_text(status_of_sweep(files, now=time.time())).splitlines(),
                time.monotonic(),
            )
        return shown

    return made


def _shows_dots() -> bool:
    """Whether the terminal can write braille: by its encoding, and it is no plain console."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    return encoding == "utf8" and os.environ.get("TERM") not in ("linux", "dumb")
