"""Named places where a drill may make something go wrong; elsewhere they do nothing.

    faultpoint("save.after_file")            kill, stop, raise, sleep ... here
    faultpoint("step.gradients", gradient)   or damage the value that is handed over

A process is armed by `arm`, which its worker calls only if the run says `drills.enabled`. An
unarmed point costs one comparison. Every name is in `POINTS`: a drill that names another one is
refused, and a test holds the table against the code.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import Refused

ENVIRONMENT = "LONGHAUL_DRILL"  # faults of a process, as `parse` reads them

POINTS = {
    "start.imported": "a rank has its imports, nobody has met",
    "start.met": "the ranks have met",
    "start.loaded": "the checkpoint or the starting values are loaded",
    "step.begin": "before the first micro-step",
    "step.forward": "after a micro-step's forward; the subject is its loss",
    "step.backward": "after a micro-step's backward; the subject is the engine",
    "step.agree": "before the step's own collective",
    "step.update": "before the optimizer's update",
    "step.end": "after the update",
    "data.read": "before a rank reads rows",
    "save.begin": "before the ranks agree to save",
    "save.staged": "state is copied, training goes on",
    "save.file_written": "a rank's file is written, not yet durable",
    "save.file_durable": "a rank's file is durable",
    "save.before_manifest": "all files are durable; rank 0 is about to write the manifest",
    "save.before_rename": "the manifest is durable",
    "save.before_pointer": "the step is published",
    "eval.begin": "before an evaluation",
    "end.begin": "training is over, the last save is done",
}

ACTIONS = ("kill", "stop", "raise", "sleep", "hang", "spin", "enospc", "eio", "nan", "inf", "flip")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong once, at the `hit`-th passing of `point` from step `step` on."""

    point: str
    action: str
    rank: int = -1  # -1: every rank
    hit: int = 1
    step: int = 0  # passings of earlier steps are not counted; 0: all are
    value: float = 0.0  # seconds of a sleep; element to damage


class Drilled(Exception):
    """What the action `raise` raises."""


class _Armed:
    """The faults of this process and how often each point was passed."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.waiting = dict(enumerate(faults))
        self.passed = dict.fromkeys(self.waiting, 0)
        self.step = 0

    def passing(self, point: str, subject: Any) -> None:
        for index, fault in list(self.waiting.items()):
            if fault.point != point or self.step < fault.step:
                continue
            self.passed[index] += 1
            if self.passed[index] == fault.hit:
                del self.waiting[index]
                _act(fault, subject)


_armed: _Armed | None = None  # the one global here: a point must cost nothing where it is unarmed


def faultpoint(point: str, subject: Any = None) -> None:
    """Do what a drill planned for this place; nothing at all in a run that is no drill."""
    if _armed is not None:
        _armed.passing(point, subject)


def at_step(step: int) -> None:
    """Tell the drill which step is being made."""
    if _armed is not None:
        _armed.step = step


def arm(faults: Sequence[Fault], *, rank: int) -> None:
    """From here on the faults meant for this rank happen. No fault: unarmed again."""
    global _armed
    mine = [f for f in faults if f.rank in (-1, rank)]
    _armed = _Armed(mine) if mine else None


def parse(text: str) -> list[Fault]:
    """Read `point=save.begin,action=kill,rank=1,hit=2;point=...`.

    Raises: Refused for a point, an action or a key that does not exist.
    """
    return [_fault(part) for part in text.split(";") if part.strip()]


def _fault(text: str) -> Fault:
    pairs = dict(item.partition("=")[::2] for item in text.strip().split(","))
    point, action = pairs.pop("point", ""), pairs.pop("action", "")
    if point not in POINTS:
        raise Refused(f"{ENVIRONMENT}: there is no fault point {point!r}; {', '.join(POINTS)}")
    if action not in ACTIONS:
        raise Refused(f"{ENVIRONMENT}: there is no action {action!r}; {', '.join(ACTIONS)}")
    if unknown := pairs.keys() - {"rank", "hit", "step", "value"}:
        raise Refused(f"{ENVIRONMENT}: {min(unknown)!r} is none of rank, hit, step, value")
    try:
        value = float(pairs.pop("value", 0.0))
        return Fault(point, action, value=value, **{k: int(v) for k, v in pairs.items()})
    except ValueError as e:
        raise Refused(f"{ENVIRONMENT}: {text!r}: {e}") from e


def _act(fault: Fault, subject: Any) -> None:
    if fault.action in _ERRORS:
        number = _ERRORS[fault.action]
        raise OSError(number, os.strerror(number), fault.point)
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
    elif fault.action == "raise":
        raise Drilled(f"drill at {fault.point}")
    elif fault.action == "sleep":
        time.sleep(fault.value)
    elif fault.action in _ENDLESS:
        while True:
            time.sleep(_ENDLESS[fault.action])
    else:
        subject(fault.action, int(fault.value))  # who owns the value knows how to damage it


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_ENDLESS = {"hang": 3600.0, "spin": 0.0}  # asleep; busy
