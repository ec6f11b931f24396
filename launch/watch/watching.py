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

import os
import time
from collections.abc import Collection, Sequence

from launch.watch.culprit import Standing, Witness, overdue
from launch.watch.finding import Finding as Finding
from launch.watch.finding import finding_of, where
from launch.watch.finding import record_hang as record_hang
from launch.watch.limits import Limits, WatchRules, kind_of_row, read_longest, write_longest
from launch.watch.stacks import dump_stacks
from launch.watch.stragglers import Stragglers
from launch.watch.watched import Watched
from trainer.records.ledger import SPENT_EVERY_S, Ledger
from trainer.records.pulse import ENVIRONMENT, LOOP, Beat
from trainer.records.run_files import AttemptFiles, RunFiles

POLL_S = 0.25
_PAUSE_S = 2.0  # between two polls: then this process stood still too, as a stopped machine does


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
        self._is_first = node == 0  # who keeps what the run has shown
        self._told = {"training": False, "first_step": False}
        self._watched = {rank: Watched.make(rank) for rank in ranks}
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

    def look(self) -> Finding | None:
        """Which rank here is furthest behind, its stacks written: another node has found a hang."""
        now = time.monotonic()
        running = [each for each in self._watched.values() if each.runs and each.pid]
        for each in running:
            each.read()
        standings = [self._standing(each, now) for each in running]
        if not standings:
            return None
        self._has_found = True
        return self._found(standings, min(standings, key=lambda s: s.beat.beats))

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
        about = {s.rank: where(s) for s in standings}
        seen = dump_stacks(pages, self._files.stacks, about=about)
        self.ledger.write("stacks", ranks=sorted(pages))
        return seen

    # --- judging --------------------------------------------------------------------------------

    def _standing(self, each: Watched, now: float) -> Standing:
        beat = each.beat
        stalled_s = max(now - beat.since - self._stood_still(beat.since, now), 0.0)
        return Standing(each.rank, beat, stalled_s, self._limits.limit(beat))

    def _stood_still(self, since: float, now: float) -> float:
        """Seconds between `since` and `now` in which nobody was watching."""
        return sum(min(pause_s, now - since) for over, pause_s in self._pauses if over > since)

    def _found(self, standings: Sequence[Standing], late: Standing) -> Finding:
        self._write_spent()  # now: a stopped rank is continued for its stacks
        seen = self.dump_stacks(standings)
        finding = finding_of(standings, late, seen, stacks=self._files.stacks)
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

    # --- what is kept ---------------------------------------------------------------------------

    def _tell_progress(self, running: list[Watched]) -> None:
        if not running or all(self._told.values()):
            return
        beat = running[0].beat
        if beat.step and not self._told["training"]:
            self._told["training"] = True
            self.ledger.write("training", step=beat.step)
        if beat.step and not (beat.first and beat.phase in LOOP) and not self._told["first_step"]:
            self._told["first_step"] = True
            self.ledger.write("first_step", step=beat.step)

    def _tell_stragglers(self, running: list[Watched]) -> None:
        slow, well = self._stragglers.look({each.rank: each.worked() for each in running})
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
                made=each.beat.made,
                furthest=each.furthest,
                since=round(each.beat.since, 3),
                seconds={n: round(s.total_s, 3) for n, s in each.beat.spent.items() if s.times},
            )

    def _keep_longest(self) -> None:
        if not self._limits.longest or not self._is_first:
            return
        try:
            write_longest(self._longest_path, self._limits.longest, world_size=self._world_size)
        except OSError:
            return  # a restart learns again; a disk that is full ends no run here
