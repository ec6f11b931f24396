"""Watches the ranks of one node from outside: who stands still, where, and on whom the rest wait.

    watch = Watch(files, ranks=[0, 1], rules=spec.watch, world_size=spec.world_size)
    environment |= watch.environment(rank)          before a rank is started
    watch.started(rank, pid)
    finding = watch.poll(time.monotonic())          every quarter of a second
    watch.ended(rank, code)
    watch.close(exit_code=..., why=...)

Polling reads memory and takes microseconds a rank. A finding comes with the stacks of all ranks
already written; ending them is the caller's. Standard library only.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launch.budgets import HUNG
from launch.culprit import Standing, Witness, culprit, is_certain, overdue
from launch.limits import Limits, WatchRules, kind_of_row, read_longest, write_longest
from launch.stacks import Page, dump_stacks
from launch.stragglers import Stragglers
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord, write_record
from trainer.records.ledger import SPENT_EVERY_S, Ledger
from trainer.records.pulse import ENVIRONMENT, LOOP, PAGE_BYTES, Beat, read_beat, read_worked
from trainer.records.run_files import AttemptFiles, RunFiles

POLL_S = 0.25
_PAUSE_S = 2.0  # between two polls: then this process stood still too, as a stopped machine does
_NAMED = 8  # ranks named one by one
_FRAMES = 6  # of the culprit's stack that a person is told at once


@dataclass(frozen=True)
class Finding:
    """A hang. `certain`: the culprit itself was seen outside a collective, or stopped."""

    culprit_rank: int
    phase: str
    step: int
    stalled_s: float
    limit_s: float
    text: str  # what a person is told after "rank N "
    certain: bool = True
    stack: str = ""  # of all threads of the culprit


class Watch:
    """The ranks of one node during one attempt. Makes their pages and gives them up in `close`."""

    def __init__(
        self,
        files: AttemptFiles,
        *,
        ranks: Sequence[int],
        rules: WatchRules,
        world_size: int,
        node: int = 0,
    ) -> None:
        run = RunFiles(files.root.parent.parent)
        self._files = files
        self._rules = rules
        self._world_size = world_size
        self._longest_path = run.watch
        self._limits = Limits(rules, read_longest(run.watch, world_size=world_size))
        self._stragglers = Stragglers()
        self._pauses: list[tuple[float, float]] = []  # when one was over, its seconds
        self._polled: float | None = None
        self._spent_at: float | None = None
        self._has_found = False
        self._told = {"training": False, "first_step": False}
        self._watched = {rank: _Watched.make(rank) for rank in ranks}
        self.ledger = Ledger(run.ledger(node), attempt=files.number)
        self.ledger.write("attempt", ranks=list(ranks), world_size=world_size)

    def environment(self, rank: int) -> dict[str, str]:
        """What the rank's process needs to find its page."""
        return {ENVIRONMENT: f"/proc/{os.getpid()}/fd/{self._watched[rank].descriptor}"}

    def started(self, rank: int, pid: int) -> None:
        self._watched[rank].pid = pid
        self._watched[rank].beat = Beat(since=time.monotonic())
        self.ledger.write("rank", rank=rank, pid=pid)

    def ended(self, rank: int, code: int) -> None:
        """It is judged no more."""
        self._watched[rank].runs = False
        self.ledger.write("rank_ended", rank=rank, code=code)
        self._write_spent()

    def poll(self, now: float) -> Finding | None:
        """The first hang, its stacks already written; None ever after. `now`: time.monotonic()."""
        if self._polled is not None and now - self._polled > _PAUSE_S:
            self._pauses.append((now, now - self._polled))
        self._polled = now
        running = [each for each in self._watched.values() if each.runs and each.pid]
        for each in running:
            each.read()
            for name, longest_s in each.news():
                # A phase in which the machine stood still proves nothing about phases.
                own = longest_s - self._stood_still(now - longest_s - _PAUSE_S, now)
                self._limits.learn(kind_of_row(name), own)
        self._tell_progress(running)
        self._tell_stragglers(running)
        if self._spent_at is None or now - self._spent_at > SPENT_EVERY_S:
            self._spent_at = now
            self._write_spent()
            self._keep_longest()
        if not self._rules.enabled or not running or self._has_found:
            return None
        standings = [self._standing(each, now) for each in running]
        late = overdue(standings)
        if late is None:
            return None
        self._has_found = True
        return self._found(standings, late)

    def close(self, *, exit_code: int | None = None, why: str = "") -> None:
        self._write_spent()
        self._keep_longest()
        self.ledger.write("ended", exit_code=exit_code, why=why)
        for each in self._watched.values():
            each.close()
        self._watched = {}

    def dump_stacks(self, standings: Collection[Standing] = ()) -> dict[int, Witness]:
        """Write attempts/N/stacks/rank-00003.txt for every rank that runs."""
        pages = {e.rank: e.page for e in self._watched.values() if e.runs and e.pid}
        about = {s.rank: _where(s) for s in standings}
        seen = dump_stacks(pages, self._files.stacks, about=about)
        self.ledger.write("stacks", ranks=sorted(pages))
        return seen

    # --- judging --------------------------------------------------------------------------------

    def _standing(self, each: _Watched, now: float) -> Standing:
        beat = each.beat
        stalled_s = max(now - beat.since - self._stood_still(beat.since, now), 0.0)
        return Standing(each.rank, beat, stalled_s, self._limits.limit(beat))

    def _stood_still(self, since: float, now: float) -> float:
        """Seconds between `since` and `now` in which nobody was watching."""
        return sum(min(pause_s, now - since) for over, pause_s in self._pauses if over > since)

    def _found(self, standings: Sequence[Standing], late: Standing) -> Finding:
        self._write_spent()  # now: a stopped rank is continued for its stacks
        seen = self.dump_stacks(standings)
        blamed = culprit(standings, seen)
        witness = seen.get(blamed.rank)
        finding = Finding(
            culprit_rank=blamed.rank,
            phase=blamed.beat.phase,
            step=blamed.beat.step,
            stalled_s=round(blamed.stalled_s, 1),
            limit_s=late.limit_s,
            text=self._text(standings, late, blamed, seen),
            certain=is_certain(witness),
            stack=witness.text if witness else "",
        )
        self.ledger.write(
            "hang",
            rank=finding.culprit_rank,
            phase=finding.phase,
            step=finding.step,
            stalled_s=finding.stalled_s,
            limit_s=late.limit_s,
            waited_since=round(late.beat.since, 3),
        )
        return finding

    def _text(
        self,
        standings: Sequence[Standing],
        late: Standing,
        blamed: Standing,
        seen: Mapping[int, Witness],
    ) -> str:
        witness = seen.get(blamed.rank)
        if blamed is late:
            about = f"the limit is {late.limit_s:.1f} s{_others(standings, blamed)}"
        else:
            about = f"rank {late.rank} is in {_where(late)}, the limit is {late.limit_s:.1f} s"
        lines = [f"hung in {_where(blamed)}; {about}"]
        if witness is not None and witness.is_stopped:
            lines.append("it was stopped by a signal (SIGSTOP)")
        elif witness is not None and witness.waits is None:
            state = witness.state or "gone"
            lines.append(f"it gave no stacks; its process state is {state} (D: stuck in a disk)")
        elif not is_certain(witness):
            lines.append("it is furthest behind, but waits in a collective as the others do")
        if witness is not None and witness.frames:
            lines.append("it stands in " + " < ".join(witness.frames[:_FRAMES]))
        lines.append(f"stacks of all ranks: {self._files.stacks}")
        return "\n  ".join(lines)

    # --- what is kept ---------------------------------------------------------------------------

    def _tell_progress(self, running: list[_Watched]) -> None:
        if not running or all(self._told.values()):
            return
        beat = running[0].beat
        if beat.step and not self._told["training"]:
            self._told["training"] = True
            self.ledger.write("training", step=beat.step)
        if beat.step and not (beat.first and beat.phase in LOOP) and not self._told["first_step"]:
            self._told["first_step"] = True
            self.ledger.write("first_step", step=beat.step)

    def _tell_stragglers(self, running: list[_Watched]) -> None:
        slow, well = self._stragglers.look(
            {each.rank: read_worked(each.memory) for each in running}
        )
        for one in slow:
            ratio = round(one.ratio, 2)
            self.ledger.write("straggler", rank=one.rank, ratio=ratio, step=one.step)
        for rank in well:
            self.ledger.write("well", rank=rank)

    def _write_spent(self) -> None:
        """Of the first rank here; the others wait for it, or it for them."""
        for each in list(self._watched.values())[:1]:
            each.read()
            if not each.beat.pid:
                return
            self.ledger.write(
                "spent",
                rank=each.rank,
                phase=each.beat.phase,
                step=each.beat.step,
                first_step=each.beat.first_step,
                since=round(each.beat.since, 3),
                seconds={n: round(s.total_s, 3) for n, s in each.beat.spent.items() if s.times},
            )

    def _keep_longest(self) -> None:
        if not self._limits.longest:
            return
        try:
            write_longest(self._longest_path, self._limits.longest, world_size=self._world_size)
        except OSError:
            return  # a restart learns again; a disk that is full ends no run here


@dataclass
class _Watched:
    """One rank and its page."""

    rank: int
    descriptor: int
    memory: mmap.mmap
    pid: int = 0
    runs: bool = True
    beat: Beat = field(default_factory=Beat)
    _longest: dict[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, rank: int) -> _Watched:
        descriptor = os.memfd_create(f"longhaul-pulse-{rank}", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, PAGE_BYTES)
        return cls(rank, descriptor, mmap.mmap(descriptor, PAGE_BYTES))

    @property
    def page(self) -> Page:
        return Page(self.descriptor, self.beat.pid or self.pid, self.beat.signal)

    def read(self) -> None:
        found = read_beat(self.memory, self.beat)
        if found.pid:
            self.beat = found

    def news(self) -> Iterator[tuple[str, float]]:
        """Rows whose longest grew since this was asked last, and to how many seconds."""
        for name, spent in self.beat.spent.items():
            if spent.longest_s > self._longest.get(name, 0.0):
                self._longest[name] = spent.longest_s
                yield name, spent.longest_s

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)


def _where(standing: Standing) -> str:
    beat = standing.beat
    step = f" of step {beat.step}" if beat.step else ""
    return f"{beat.phase}{step} for {standing.stalled_s:.1f} s"


def _others(standings: Collection[Standing], blamed: Standing) -> str:
    others = [str(s.rank) for s in standings if s.rank != blamed.rank]
    if not others:
        return ""
    if len(others) > _NAMED:
        return f"; {len(others)} other ranks wait for it"
    who = f"rank {others[0]} waits" if len(others) == 1 else f"ranks {', '.join(others)} wait"
    return f"; {who} for it"


def record_hang(files: AttemptFiles, finding: Finding) -> None:
    """Make error.json speak of the culprit; what another rank wrote meanwhile is its echo."""
    done = finding.step - 1 if finding.phase in LOOP else finding.step
    record = ErrorRecord(
        time=time.time(),
        rank=finding.culprit_rank,
        host=socket.gethostname(),
        kind=HUNG,
        message=finding.text,
        exit_code=int(Exit.FAILED),
        step=done if finding.step else None,
        traceback=finding.stack,
    )
    write_record(files.error, record)
