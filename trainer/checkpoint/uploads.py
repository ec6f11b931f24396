"""A rank's side of the uploads: says what is to be uploaded, hears how it went, waits at the end.

Rank 0 decides for all, in one small broadcast after a save: a step is uploaded if it is due and
rank 0's process is idle, which it is once the step before is committed in the store or given up.
So there is one step under way at most, the same on all ranks, and what is left out is counted.
Nothing that goes wrong here ends a run.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from trainer.checkpoint.link import child_environment
from trainer.checkpoint.upload_failures import forget_failures, note_failure
from trainer.checkpoint.uploader import UploadSettings
from trainer.checkpoint.wire import receive, send, value_of
from trainer.checkpoint.writer_process import SIGNALS
from trainer.dist.world import World
from trainer.errors import LonghaulError
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal
from trainer.reports import UploadReport

_log = logging.getLogger("trainer.checkpoint")
_SEND_S = 10.0
_DIES_S = 10.0  # from a kill, or the end of its line, to its own; milliseconds on a quiet machine
_BEAT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Remote:
    """`url`: of the run's own folder in the store. `every`: committed steps."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1
    keep_last: int = 2
    timeout_s: float = 3600.0
    drain_s: float = 120.0


class Courier(Protocol):
    """Carries orders out, one at a time, without anybody waiting."""

    def give(self, order: dict[str, Any]) -> None: ...
    def said(self) -> dict[str, Any] | None:
        """The answer to the oldest order, or a "note" while it is under way; None: neither."""

    def close(self) -> None: ...


class Uploads:
    """Of one rank. `courier`: how orders are carried out; a process unless a test says."""

    def __init__(
        self,
        remote: Remote,
        run: RunFiles,
        *,
        attempt: int,
        rank: int,
        world_size: int,
        courier: Courier | None = None,
    ) -> None:
        self._remote = remote
        self._run = run
        self._attempt = attempt
        self._rank = rank
        settings = UploadSettings(
            url=remote.url,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            keep_last=remote.keep_last,
            timeout_s=remote.timeout_s,
        )
        opening = {
            "url": remote.url,
            "options": dict(remote.options),
            "run": str(run.root),
            "settings": asdict(settings),
        }
        self._courier = courier or ProcessCourier(opening)
        self._committed = 0  # steps that were published
        self._waiting: int | None = None  # the newest step, if it was not given
        self._under_way: list[int] = []  # orders given: a step, or 0 for a withdrawal
        self._skipped = 0
        self._note = ""  # what is in the way of the order under way
        self._heard: list[UploadReport] = []

    def published(self, world: World, step: int, *, must: bool = False) -> None:
        """A step is safe on the disk: upload it, or not, on all ranks alike. Collective."""
        self._committed += 1
        if not must and self._committed % self._remote.every:
            return
        if world.lead(lambda: self._is_free_for(step)):
            self._give(step)
            return
        self._skipped += self._waiting is not None
        self._waiting = step

    def reports(self) -> list[UploadReport]:
        """What has ended since the last call; on rank 0, for people. Local, never waits."""
        self._listen()
        told, self._heard = self._heard, []
        return told

    def drain(self, world: World, beat: Callable[[], None]) -> list[UploadReport]:
        """Where training ends: wait for the newest step's upload, `drain_s` at most. Collective."""
        until = time.monotonic() + self._remote.drain_s
        lead = self._rank == 0
        # Short waits between collectives, so that no rank sits in one for long.
        while self._waiting is not None and not world.lead(
            lambda: self._idle_by(time.monotonic() + _BEAT_S) or time.monotonic() > until
        ):
            beat()
        waiting = self._waiting
        if waiting is not None and world.lead(lambda: self._is_free_for(waiting)):
            self._give(waiting)
        while self._is_busy() and time.monotonic() < until:
            beat()
            self._idle_by(time.monotonic() + _BEAT_S)
        if lead and (self._is_busy() or self._waiting is not None):
            step = self._waiting or self._under_way[-1]
            why = f": {self._note}" if self._note else ""
            late = f"not done {self._remote.drain_s:.0f} s after the end of training"
            self._tell(step, late + why)
        return self.reports()

    def withdraw(self, after: int) -> None:
        """The run goes back: copies of later steps count no more. Rank 0. Raises: OSError."""
        mark = Withdrawal(attempt=self._attempt, time=time.time(), after=after)
        add_withdrawal(self._run.withdrawn, mark)
        self._waiting = None
        self._under_way.append(0)
        self._courier.give({"do": "withdraw"})

    def close(self) -> None:
        self._courier.close()

    def _give(self, step: int) -> None:
        self._waiting = None
        self._under_way.append(step)
        self._courier.give({"do": "upload", "step": step})

    def _is_free_for(self, step: int) -> bool:
        if self._is_busy():
            return False
        forget_failures(self._run.attempt(self._attempt), step)
        return True

    def _is_busy(self) -> bool:
        self._listen()
        return bool(self._under_way)

    def _idle_by(self, until: float) -> bool:
        while (busy := self._is_busy()) and time.monotonic() < until:
            time.sleep(0.02)
        return not busy

    def _listen(self) -> None:
        while self._under_way and (said := self._courier.said()) is not None:
            if "note" in said:
                self._noted(str(said["note"]))
                continue
            step = self._under_way.pop(0)
            try:
                value = value_of(said)
            except LonghaulError as e:
                self._tell(step, str(e))
                continue
            if step:
                self._ended(step, value)

    def _noted(self, note: str) -> None:
        """Once, until an upload has ended well: each request of each step would say it again."""
        if note != self._note:
            _log.warning("copies of steps: %s; tried again for a minute and a half", note)
        self._note = note

    def _ended(self, step: int, value: Mapping[str, Any]) -> None:
        self._note = ""
        problem = str(value["problem"])
        report = UploadReport(
            step=step,
            succeeded=True,
            bytes=int(value["total"]),
            seconds=float(value["seconds"]),
            url=self._remote.url,
            problem=problem,
            skipped=self._skipped,
        )
        if problem:
            _log.warning("%s", problem)
        self._heard.append(report)

    def _tell(self, step: int, why: str) -> None:
        what = f"step {step} was not uploaded" if step else "the steps given up were not withdrawn"
        problem = f"{what}: {why}"
        _log.warning("%s", problem)
        if step:
            note_failure(self._run.attempt(self._attempt), step, rank=self._rank)
        self._heard.append(
            UploadReport(
                step=step,
                succeeded=False,
                bytes=0,
                seconds=0.0,
                url=self._remote.url,
                problem=problem,
                skipped=self._skipped,
            )
        )


class ProcessCourier:
    """A process beside the rank, started with the first order and again after it died.

    `module`: what it runs, called `name`; `kept`: descriptors it inherits, named by `words`.
    """

    def __init__(
        self,
        opening: Mapping[str, Any],
        *,
        module: str = "trainer.checkpoint.upload_process",
        name: str = "the upload process",
        kept: tuple[int, ...] = (),
        words: Sequence[str] = (),
    ) -> None:
        self._opening = opening
        self._module = module
        self._name = name
        self._kept = kept
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._failures: list[dict[str, Any]] = []
        self._open_orders = 0

    def give(self, order: dict[str, Any]) -> None:
        try:
            link = self._started()
            send(link, order)
            self._open_orders += 1
        except OSError as e:
            self._failures.append({"error": f"{self._name} takes no orders ({e})"})

    def said(self) -> dict[str, Any] | None:
        if self._failures and not self._open_orders:
            return self._failures.pop(0)
        if self._link is None or not self._open_orders:
            return None
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if not poll.poll(0):
            return None
        try:
            answer = receive(self._link)
        except OSError:
            answer = None
        if answer is None:
            return self._lost()
        self._open_orders -= "note" not in answer
        return answer

    def close(self) -> None:
        """End it, whatever it is doing: what it sent stays, and is not sent again."""
        process, self._process = self._process, None
        if self._link is not None:
            self._link.close()
            self._link = None
        if process is not None and process.poll() is None:
            process.kill()
            _code_of(process)

    def _lost(self) -> dict[str, Any]:
        code = _code_of(self._process) if self._process is not None else None
        self.close()
        gone = {"error": f"{self._name} ended (exit code {code})"}
        self._failures += [gone] * (self._open_orders - 1)
        self._open_orders = 0
        return gone

    def _started(self) -> socket.socket:
        if self._link is not None:
            return self._link
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_S)
        words = ["--socket", f"{theirs.fileno()}", "--parent", f"{os.getpid()}"]
        # A stop signal for the whole group must not end it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, *words, *self._words],
                pass_fds=(theirs.fileno(), *self._kept),
                stdin=subprocess.DEVNULL,
                env=child_environment(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        send(ours, {"open": dict(self._opening)})
        self._link = ours
        return ours


def _code_of(process: subprocess.Popen[bytes]) -> int | None:
    """Of one that is about to end; None if it hangs in the kernel."""
    try:
        return process.wait(_DIES_S)
    except subprocess.TimeoutExpired:
        return None
