"""The page of shared memory in which a rank says where it is, and what its watcher reads of it.

    bytes 0..64      beats, pid, phase, step, since, first step, signal, beats again
    bytes 128..      one row a phase and one for the first step: times entered, ns, longest ns
    bytes 1024..     the last 32 steps: step, ns of work before its first collective
    from byte 4096   stacks, as faulthandler appends them when it is asked to

The page is an anonymous file of the watcher's, which every rank of the node opens by name in
/proc: a mapped file of the run folder would be a network write a beat on NFS, and a name in a
shared folder would outlive a watcher that is killed. Times are CLOCK_MONOTONIC: they compare
between the processes of one machine and never jump. Standard library only.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

ENVIRONMENT = "LONGHAUL_PULSE"  # path of a rank's page; unset: nobody watches

Phase = Literal[
    "launch", "imports", "meet", "build", "load", "data", "forward", "backward", "agree", "update",
    "save", "eval", "end",
]  # fmt: skip
PHASES: tuple[Phase, ...] = get_args(Phase)  # a phase is written as its place here
LOOP: tuple[Phase, ...] = ("data", "forward", "backward", "agree", "update")  # of one step
WORK: tuple[Phase, ...] = ("data", "forward")  # of LOOP: wait for no other rank below ZeRO-3

PAGE_BYTES = 4096  # stacks follow
HEAD = struct.Struct("8Q")
ROW = struct.Struct("3Q")
ROWS_AT = 128
FIRST = len(PHASES)  # the row of the first step: its phases compile and warm up
ROW_NAMES: tuple[str, ...] = (*PHASES, "first")
WORKED = struct.Struct("2Q")
WORKED_AT = 1024
WORKED_STEPS = 32


@dataclass(frozen=True)
class Spent:
    """What a rank spent in one phase that has ended. Units: seconds."""

    times: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True)
class Beat:
    """Where one rank is. `since`: CLOCK_MONOTONIC seconds; `beats`: phases entered so far.

    Ranks do the same phases in the same order, so that fewer beats mean further behind.
    """

    beats: int = 0
    pid: int = 0  # 0: not heard of yet
    phase: Phase = "launch"
    step: int = 0
    since: float = 0.0
    first_step: int = 0  # the first step of the attempt; 0: it has not begun
    signal: int = 0  # what makes it append its stacks; 0: nothing does
    spent: Mapping[str, Spent] = field(default_factory=dict)  # by ROW_NAMES

    @property
    def first(self) -> bool:
        return self.step == self.first_step > 0

    @property
    def done(self) -> int:
        """The last step that is over."""
        return self.step - 1 if self.phase in LOOP else self.step

    @property
    def made(self) -> int:
        """Steps that this process has made; some of them again, if it went back."""
        if not self.first_step:
            return 0
        again = self.spent["update"].times if "update" in self.spent else 0
        return again + (not (self.first and self.phase in LOOP))


def read_beat(page: mmap.mmap | bytearray, before: Beat | None = None) -> Beat:
    """`before`: what is believed when the rank was stopped in the middle of writing."""
    head = bytes(page[: HEAD.size])
    beats, pid, phase, step, since, first, number, again = HEAD.unpack(head)
    for _ in range(3):
        now = bytes(page[: HEAD.size])
        if now == head and beats == again and phase < len(PHASES):
            spent = {name: _spent(page, at) for at, name in enumerate(ROW_NAMES)}
            return Beat(beats, pid, PHASES[phase], step, since / 1e9, first, number, spent)
        head = now
        beats, pid, phase, step, since, first, number, again = HEAD.unpack(head)
    return before or Beat()


def read_worked(page: mmap.mmap | bytearray) -> dict[int, float]:
    """Seconds of work before the first collective of the last steps, by step."""
    found = {}
    for at in range(WORKED_STEPS):
        step, spent = WORKED.unpack_from(page, WORKED_AT + at * WORKED.size)
        if step:
            found[step] = spent / 1e9
    return found


def _spent(page: mmap.mmap | bytearray, at: int) -> Spent:
    times, total, longest = ROW.unpack_from(page, ROWS_AT + at * ROW.size)
    return Spent(times, total / 1e9, longest / 1e9)
