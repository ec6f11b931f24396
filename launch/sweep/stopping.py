"""Stopping a sweep: its trials save and stop, and none begins. The same command goes on."""

from __future__ import annotations

import sys
import time

from launch.run.standing import standings
from launch.sweep.folder import SweepFiles, is_carried
from launch.sweep.journal import read_trials
from launch.sweep.place import stop_trial
from trainer.errors import Exit, LonghaulError

_PATIENCE_S = 60.0  # beside what its trials may take to save; schedulers are asked some times


def stop_sweep(files: SweepFiles, *, wait: bool) -> int:
    """The exit code. Where nobody carries the sweep, its trials that still run are told."""
    if not is_carried(files):
        return _stop_orphans(files)
    files.stop.touch(mode=0o600)
    if not wait:
        print(f"{files.name} was asked to save and stop")
        return Exit.DONE
    print(f"{files.name}: its trials save and stop ...", flush=True)
    deadline = time.monotonic() + _grace_s(files) + _PATIENCE_S
    while is_carried(files):
        if time.monotonic() > deadline:
            print(f"{files.name} still runs", file=sys.stderr)
            return Exit.FAILED
        time.sleep(0.1)
    print(f"{files.name}: stopped; `longhaul sweep {files.name}` goes on")
    return Exit.DONE


def _stop_orphans(files: SweepFiles) -> int:
    active = [t.number for t in read_trials(files.trials).values() if t.state == "active"]
    told, missed = 0, 0
    there = standings([files.run(number) for number in active])
    for number, now in zip(active, there, strict=True):
        try:
            told += stop_trial(files, number, now)
        except LonghaulError as e:  # the others are told all the same
            print(e, file=sys.stderr)
            missed += 1
    print(f"{files.name} is not running" + (f"; {told} of its trials were told" if told else ""))
    return Exit.FAILED if missed else Exit.DONE


def _grace_s(files: SweepFiles) -> float:
    from trainer.records.json_file import read_json

    found = [0.0]
    for path in (files.root / "settings").glob("*.json"):
        try:
            found.append(float(read_json(path)["launch"]["grace_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)
