"""A rank without torch that behaves as one that trains, for sweeps on real schedulers.

Run as `python -m tests.helpers.in_vain RUN_FOLDER --attempt N`. A step takes 20 ms and comes to
`value_at`; checkpoints are empty. It goes on after its run's newest one, saves every
`steps.save_every` steps, and pauses where `steps.pause_at` says. At the steps that RUNGS of the
environment names ("10 30") it waits until its sweep has judged it, so that what a sweep costs does
not depend on how busy a machine is; and before every step for as long as the sweep's folder has a
file `hold`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import Exit
from trainer.records.attempt import PAUSE, Done, Started, Stop, write_record
from trainer.records.json_file import append_line, read_json, read_lines
from trainer.records.run_files import AttemptFiles, RunFiles, step_name, step_of

_STEP_S = 0.02
_PATIENCE_S = 600.0


def value_at(learning_rate: float, step: int) -> float:
    """Falls, and is the smallest near 1e-3 at every step."""
    return (math.log10(learning_rate) + 3.0) ** 2 + 10.0 / step


def main() -> int:
    run = RunFiles(Path(sys.argv[1]))
    files = run.attempt(int(sys.argv[3]))
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda n, _: told.append(n))
    return _follow(files, told) if int(os.environ["RANK"]) else _lead(run, files, told)


def _lead(run: RunFiles, files: AttemptFiles, told: Sequence[int]) -> Exit:
    config = read_json(files.plan)["config"]
    steps, begun = config["steps"], _newest(run)
    size, host = int(os.environ["WORLD_SIZE"]), socket.gethostname()
    write_record(files.started, Started(time.time(), begun, size, host))
    rungs = [int(word) for word in os.environ.get("RUNGS", "").split()]
    for step in range(begun + 1, steps["total"] + 1):
        _pass(run, told)
        value = value_at(config["optimizer"]["learning_rate"], step)
        _say(run, files, kind="step", step=step, loss=value)
        pauses = step == steps["pause_at"] and step < steps["total"]
        if step % steps["eval_every"] == 0 or pauses or step == steps["total"]:
            _say(run, files, kind="eval", step=step, eval_loss=value)
        if step in rungs:
            _until_judged(run, told, level=rungs.index(step))
        saves = steps["save_every"] and step % steps["save_every"] == 0
        if told or pauses or saves or step == steps["total"]:
            _save(run, step)
        if pauses:
            write_record(files.stop, Stop("user", time.time(), PAUSE))
        if (told and step < steps["total"]) or pauses:
            return Exit.SAVED
    last = value_at(config["optimizer"]["learning_rate"], steps["total"])
    write_record(files.done, Done(time=time.time(), step=steps["total"], loss=last))
    return Exit.DONE


def _follow(files: AttemptFiles, told: Sequence[int]) -> Exit:
    """The other ranks leave when the first does."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if files.done.exists():
            return Exit.DONE
        if told or files.stop.exists():
            return Exit.SAVED
        time.sleep(0.02)
    return Exit.FAILED


def _pass(run: RunFiles, told: Sequence[int]) -> None:
    hold, deadline = run.root.parent.parent / "hold", time.monotonic() + _PATIENCE_S
    time.sleep(_STEP_S)
    while hold.exists() and not told and time.monotonic() < deadline:
        time.sleep(0.05)


def _until_judged(run: RunFiles, told: Sequence[int], *, level: int) -> None:
    journal = run.root.parent.parent / "trials.jsonl"
    number = int(run.name.rpartition("-")[2])
    deadline = time.monotonic() + _PATIENCE_S
    while not told and time.monotonic() < deadline:
        events = [line["event"] for line in read_lines(journal) if line["trial"] == number]
        if events.count("promoted") > level:
            return
        time.sleep(0.05)


def _newest(run: RunFiles) -> int:
    """Of its checkpoints; 0: none."""
    names = [path.parent.name for path in run.checkpoints.glob("*/manifest.json")]
    return max((step for name in names if (step := step_of(name)) is not None), default=0)


def _say(run: RunFiles, files: AttemptFiles, **values: Any) -> None:
    append_line(run.metrics, {**values, "attempt": files.number, "time": time.time()})


def _save(run: RunFiles, step: int) -> None:
    folder = run.checkpoints / step_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({}))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # as the worker: while an interpreter ends, one more signal would end it first
