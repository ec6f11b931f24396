"""Runs that are told to stop: D14 by a scheduler's signal, D18 by a person's Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import termios
import threading
import time
from dataclasses import dataclass

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE
from launch.drills.oracle.ending import Ending
from launch.drills.oracle.recovery import steps_redone
from launch.drills.runs import Running, Site, wait_for
from trainer.errors import Exit
from trainer.faultpoints import Fault

SAVED = Ending(Exit.SAVED, r"stopped \((scheduler|interrupt)\)")
NOW = Ending(Exit.INTERRUPTED, "second Ctrl-C")
_STOP_S = 10.0  # one step, one save, and the end of two processes that have torch loaded


@dataclass(frozen=True)
class _Notice:
    """One notice to stop. `point`: a rank signals itself there; "": the launcher gets it."""

    number: signal.Signals
    step: int
    point: str = ""
    rank: int = 1
    times: int = 1


_NOTICES = (
    _Notice(signal.SIGTERM, 3),
    _Notice(signal.SIGUSR2, 7, "step.forward"),
    _Notice(signal.SIGTERM, 10, "save.begin", rank=0),
    _Notice(signal.SIGUSR1, 13),
    _Notice(signal.SIGTERM, 16, "step.agree", times=2),
    _Notice(signal.SIGTERM, 20, "data.read", rank=0),
    _Notice(signal.SIGTERM, 0, "start.loaded"),
)


def preempted(bench: Bench) -> Result:
    """D14. One run that is stopped again and again; every attempt goes on where the last was."""
    notices = _NOTICES[:2] if bench.short else _NOTICES
    name, site = "d14", bench.site
    before, verb, wrong, slowest = site.look(name), "train", list[str](), 0.0
    for number, notice in enumerate(notices):
        token = site.token(f"d14-{number}")
        fault = Fault(
            notice.point or "step.begin",
            "signal" if notice.point else "sleep",
            rank=notice.rank if notice.point else -1,
            step=notice.step,
            times=notice.times,
            value=float(notice.number) if notice.point else 0.0,
            token=token if notice.times == 1 else "",
        )
        running = site.begin(verb, name, faults=[fault])
        if not notice.point:
            site.until(name, running, step=notice.step)
            running.signal(notice.number)
        told = time.time()
        said = running.wait()
        fired = site.fired(token)
        if notice.point and notice.times == 1:
            told = fired[0]["time"] if fired else told
        if notice.step and notice.times == 1:
            slowest = max(slowest, time.time() - told)
        if said.code != Exit.SAVED:
            wrong.append(f"notice {number} ({notice}): returned {said.code}: {said.err[-500:]}")
        verb = "resume"
    last = site.resume(name)
    redone = steps_redone(site.steps(name))
    wrong += bench.judge(name, endings=[*[SAVED] * len(notices), DONE], before=before, last=last)
    if redone:
        wrong.append(f"{redone} steps were made again")
    late = [f"gone {slowest:.1f} s after a notice"] if slowest > _STOP_S else []
    said_ = f"{len(notices)} notices, {redone} steps lost; gone {slowest:.1f} s after one at most"
    figures = {"preempt_steps_lost": float(redone)}
    return Result(len(notices), said_, tuple(wrong), figures, tuple(late))


def ctrl_c(bench: Bench) -> Result:
    """D18. The key is typed in a terminal: once, and once more."""
    site, wrong, seconds = bench.site, list[str](), dict[int, float]()
    for times, ending in ((1, SAVED), (2, NOW)):
        name = f"d18-{times}"
        before = site.look(name)
        with _terminal(site, name) as (running, keyboard):
            site.until(name, running, step=3)
            began = time.monotonic()
            os.write(keyboard, b"\x03")
            if times == 2:
                wait_for(
                    site.run(name).attempt(1).stop.exists, while_running=running, what="stop.json"
                )
                began = time.monotonic()
                os.write(keyboard, b"\x03")
            code = running.process.wait(timeout=60)
            seconds[times] = time.monotonic() - began
        if code != ending.exit_code:
            wrong.append(f"{name}: returned {code}, not {ending.exit_code}")
        wrong += [f"{name}: {text}" for text in site.left_over(name, before)]
        last = site.resume(name)
        wrong += bench.judge(name, endings=[ending, DONE], before=before, last=last)
    late = [f"a second Ctrl-C took {seconds[2]:.1f} s"] if seconds[2] > 2 else []
    said = f"once: saved and gone in {seconds[1]:.1f} s; twice: gone in {seconds[2]:.1f} s"
    return Result(2, said, tuple(wrong), late=tuple(late))


@contextlib.contextmanager
def _terminal(site: Site, name: str):  # type: ignore[no-untyped-def]
    """A run in the foreground of a pseudo-terminal, and the end at which a person types."""
    ours, theirs = pty.openpty()

    def take_over() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    running: Running = site.begin(
        *("train", name),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_over,
    )
    os.close(theirs)
    threading.Thread(target=_read_away, args=(ours,), daemon=True).start()
    try:
        yield running, ours
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


def _read_away(terminal: int) -> None:
    """What is drawn must be taken, or the one who draws waits for ever."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass
    os.close(terminal)
