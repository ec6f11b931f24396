"""Named places where a drill may make something go wrong; elsewhere they do nothing.

    faultpoint("save.begin")                 kill, stop, raise, sleep ... here
    faultpoint("step.update", damage)        or hand over who can damage a value

A process is armed by its worker, from a variable of the environment, and only if the run says
`drills.enabled`. An unarmed point costs one comparison. Every name is in `POINTS`: a drill that
names another one is refused, and a test holds the table against the code.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
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
    "step.gradient": "before a micro-step's backward; the subject is the gradient it will make",
    "step.backward": "after a micro-step's backward",
    "step.agree": "before the step's own collective",
    "step.update": "before the optimizer's update; the subject is a weight on this rank",
    "step.end": "after the update",
    "data.read": "before a rank reads rows",
    "save.begin": "before the ranks agree to save",
    "save.staged": "state is copied, training goes on",
    "save.file_written": "a rank's file is written, not yet durable",
    "save.file_durable": "a rank's file is durable",
    "save.before_manifest": "all files are durable; rank 0 is about to write the manifest",
    "save.before_rename": "the manifest is durable",
    "save.before_pointer": "the step is published",
    "memory.copied": "a state is copied to shared memory, training goes on",
    "memory.summed": "its checksums are known, its header is not written",
    "memory.before_part": "a rank's file in memory is whole, and does not count yet",
    "memory.kept": "it counts; the neighbour has nothing",
    "memory.sent": "the neighbour has it too",
    "eval.begin": "before an evaluation",
    "end.begin": "training is over, the last save is done",
}

_DAMAGES = ("nan", "inf", "flip")  # of a value that the point hands over
_POINTS_WITH_A_VALUE = ("step.forward", "step.gradient", "step.update")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong once, at the `hit`-th passing of `point` from step `step` on.

    Once in the life of a process. `token` makes it once in the life of a run: the fault writes the
    file TOKEN.RANK first (when, where, who), and where that file is, it has happened already.
    """

    point: str
    action: str
    rank: int = -1  # -1: every rank
    hit: int = 1
    step: int = 0  # passings of earlier steps are not counted; 0: all are
    times: int = 1  # that many passings in a row from the `hit`-th on; 0: all of them
    value: float = 0.0  # seconds of a sleep; number of a signal; element to damage
    token: str = ""


class Drilled(Exception):
    """What the action `raise` raises."""


class _Armed:
    """The faults of this process and how often each point was passed."""

    def __init__(self, faults: Sequence[Fault], rank: int) -> None:
        self.waiting = dict(enumerate(faults))
        self.passed = dict.fromkeys(self.waiting, 0)
        self.step = 0
        self.rank = rank

    def passing(self, point: str, subject: Any) -> None:
        for index, fault in list(self.waiting.items()):
            if fault.point != point or self.step < fault.step:
                continue
            self.passed[index] += 1
            if self.passed[index] < fault.hit:
                continue
            if fault.times and self.passed[index] == fault.hit + fault.times - 1:
                del self.waiting[index]
            if self._is_first(fault):
                _act(fault, subject)

    def _is_first(self, fault: Fault) -> bool:
        """Whether no earlier process of this rank has done it; says for ever that this one did."""
        if not fault.token:
            return True
        said = {"time": time.time(), "step": self.step, "rank": self.rank, "pid": os.getpid()}
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            file = os.open(f"{fault.token}.{self.rank}", flags, 0o600)
        except FileExistsError:
            return False
        os.write(file, json.dumps(said).encode())
        os.close(file)
        return True


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
    _armed = _Armed(mine, rank) if mine else None


def arm_from(environment: Mapping[str, str], *, enabled: bool, rank: int) -> None:
    """Arm this process with what its environment plans. Raises: Refused, as `planned` does."""
    arm(planned(environment, enabled=enabled), rank=rank)


def planned(environment: Mapping[str, str], *, enabled: bool) -> list[Fault]:
    """Raises: Refused for a fault that cannot be, or any fault in a run that is no drill."""
    faults = parse(environment.get(ENVIRONMENT, ""))
    if faults and not enabled:
        raise Refused(
            f"{ENVIRONMENT} plans {len(faults)} faults, but this run is no drill: "
            f"unset {ENVIRONMENT}, or say drills.enabled=true to have the run broken on purpose"
        )
    return faults


def parse(text: str) -> list[Fault]:
    """Read `point=save.begin,action=kill,rank=1,hit=2;point=...`.

    Raises: Refused for a point, an action or a key that does not exist.
    """
    return [_fault(part) for part in text.split(";") if part.strip()]


def as_text(faults: Sequence[Fault]) -> str:
    """What `parse` reads back."""
    return ";".join(_one_as_text(fault) for fault in faults)


def _one_as_text(fault: Fault) -> str:
    plain = Fault(fault.point, fault.action)
    pairs = {key: getattr(fault, key) for key in _KEYS}
    said = [f"{key}={value}" for key, value in pairs.items() if value != getattr(plain, key)]
    return ",".join([f"point={fault.point}", f"action={fault.action}", *said])


def _fault(text: str) -> Fault:
    pairs = dict(item.partition("=")[::2] for item in text.strip().split(","))
    point, action = pairs.pop("point", ""), pairs.pop("action", "")
    if point not in POINTS:
        raise Refused(f"{ENVIRONMENT}: there is no fault point {point!r}; {', '.join(POINTS)}")
    if action not in ACTIONS:
        raise Refused(f"{ENVIRONMENT}: there is no action {action!r}; {', '.join(ACTIONS)}")
    if action in _DAMAGES and point not in _POINTS_WITH_A_VALUE:
        raise Refused(
            f"{ENVIRONMENT}: {point} has no value that {action!r} could damage; "
            f"{', '.join(_POINTS_WITH_A_VALUE)} have one"
        )
    if unknown := pairs.keys() - _KEYS.keys():
        raise Refused(f"{ENVIRONMENT}: {min(unknown)!r} is none of {', '.join(_KEYS)}")
    try:
        return Fault(point, action, **{key: _KEYS[key](value) for key, value in pairs.items()})
    except ValueError as e:
        raise Refused(f"{ENVIRONMENT}: {text!r}: {e}") from e


_KEYS: dict[str, Any] = {
    "rank": int,
    "hit": int,
    "step": int,
    "times": int,
    "value": float,
    "token": str,
}


def _act(fault: Fault, subject: Any) -> None:
    if fault.action in _ERRORS:
        number = _ERRORS[fault.action]
        raise OSError(number, os.strerror(number), fault.point)
    if fault.action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[fault.action])
    elif fault.action == "signal":
        os.kill(os.getpid(), int(fault.value))
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
ACTIONS = (*_SIGNALS, *_ERRORS, *_ENDLESS, "signal", "raise", "sleep", *_DAMAGES)
