"""What a drill is, what it finds, and what all drills of one go share."""

from __future__ import annotations

import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from launch.drills.oracle.checkpoints import wrong_checkpoints
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.ending import Ending, wrong_endings
from launch.drills.oracle.ledger import wrong_ledger
from launch.drills.oracle.leftovers import Seen
from launch.drills.oracle.losses import wrong_losses
from launch.drills.oracle.samples import wrong_samples
from launch.drills.reference import BATCH, STEPS
from launch.drills.runs import DrillFailed, Said, Site
from trainer.errors import Exit, LonghaulError
from trainer.faultpoints import POINTS, Fault
from trainer.records.account import account
from trainer.records.ledger import read_ledger

_BUSY = 2.0  # processes a core; a drill alone makes about one
Tier = Literal["U", "P", "G", "C"]  # in process, one process, ranks, a scheduler or a cluster


class NotHere(LonghaulError):
    """What the drill `needs` is not on this machine."""


@dataclass(frozen=True)
class Result:
    """What came of a drill. `late`: bounds in seconds that were missed, and nothing else was wrong.

    `figures`: numbers by name, for the headline.
    """

    cases: int
    said: str
    wrong: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    late: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One row of the table. `needs`: what not every machine has; `run` raises NotHere then.

    `shortens`: whether it has a form with fewer cases. `pace`: see launch/drills/lanes.py.
    """

    number: int
    part: str = ""
    name: str
    fault: str
    promise: str
    bound: str  # the figure that was promised
    tier: Tier
    run: Callable[[Bench], Result] | None = None
    needs: str = ""
    shortens: bool = False
    pace: Literal["", "waits", "aside"] = ""

    @property
    def label(self) -> str:
        return f"D{self.number}{self.part}"


@dataclass(frozen=True)
class Reference:
    """A run that nothing happened to."""

    name: str
    steps: int
    losses: dict[int, float]
    step_s: float  # median, of the steps that follow each other
    stall_s: float  # mean of its saves


@dataclass
class Bench:
    """A site, its reference runs, and how much of a drill is done. `short`: as in `make test`."""

    site: Site
    short: bool = False
    seed: int = 1
    known: dict[tuple[str, ...], Reference] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)  # of the drills so far

    @cached_property
    def reference(self) -> Reference:
        return self.reference_of()

    def reference_of(self, *overrides: str, steps: int = STEPS) -> Reference:
        """The run with these overrides, made once. Raises: DrillFailed if it does not end well."""
        if overrides not in self.known:
            name = f"reference-{len(self.known) + 1}"
            said = self.site.train(name, *overrides, faults=self._dry(name))
            if said.code != Exit.DONE:
                raise DrillFailed(f"the reference run failed:\n{said.out}{said.err}")
            lines = self.site.steps(name)
            apart = [b["time"] - a["time"] for a, b in pairwise(lines)]
            stalls = [x["stall_s"] for x in self.site.saves(name)]
            self.known[overrides] = Reference(
                name=name,
                steps=steps,
                losses={x["step"]: x["loss"] for x in lines},
                step_s=statistics.median(apart),
                stall_s=statistics.mean(stalls),
            )
        return self.known[overrides]

    def _dry(self, name: str) -> list[Fault]:
        """Faults that do nothing but say that their point was passed."""
        return [Fault(point, "sleep", token=self._mark(name, point)) for point in POINTS]

    def _mark(self, name: str, point: str) -> str:
        return self.site.token(f"{name}-{point}")

    @property
    def passed(self) -> list[tuple[str, tuple[int, ...]]]:
        """The points that the reference run passes, in their order, and on which ranks.

        A new point is drilled from the day on that somebody writes it.
        """
        name = self.reference.name
        fired = {point: self.site.fired(self._mark(name, point)) for point in POINTS}
        return [(p, tuple(sorted(f["rank"] for f in said))) for p, said in fired.items() if said]

    def judge(
        self,
        name: str,
        *,
        endings: Sequence[Ending],
        before: Seen,
        last: Said | None = None,
        reference: Reference | None = None,
    ) -> list[str]:
        """The checks that every drill ends in, on a run that went on to its last step."""
        site, whole = self.site, reference or self.reference
        verified = site.json_of(
            "trainer.commands.checkpoint", "verify", str(site.run(name).root), "--json"
        )
        diff = site.json_of(
            "trainer.commands.checkpoint",
            *("diff", str(site.run(name).root), str(site.run(whole.name).root), "--json"),
        )
        found = wrong_losses(site.steps(name), whole.losses)
        found += wrong_tensors(diff, step=whole.steps)
        found += wrong_samples(site.samples(name), batch=BATCH, steps=whole.steps)
        found += self.wrong_checkpoints(name, verified, newest=whole.steps)
        found += wrong_endings(site.attempts(name), endings, code=last.code if last else None)
        found += site.left_over(name, before)
        found += self.wrong_ledger(name)
        return [f"{name}: {text}" for text in found]

    def wrong_ledger(self, name: str) -> list[str]:
        run = self.site.run(name)
        return wrong_ledger(read_ledger(run.ledger(0)), account(run.root), self.site.steps(name))

    def wrong_checkpoints(
        self, name: str, verified: Sequence[dict[str, Any]], *, newest: int
    ) -> list[str]:
        folder = self.site.run(name).checkpoints
        quarantine = folder / "quarantine"
        condemned = list(quarantine.iterdir()) if quarantine.is_dir() else []
        return wrong_checkpoints(
            verified,
            names=[path.name for path in folder.iterdir()],
            unexplained=[path.name for path in condemned if not (path / "why.txt").exists()],
            newest=newest,
        )


@dataclass(frozen=True)
class Ran:
    """A drill of the table with what came of it. Units: seconds, of the wall and of processors.

    `load`: processes that wanted a core, per core.
    """

    drill: Drill
    result: Result | None  # None: not run here
    seconds: float = 0.0
    load: float = 0.0
    cpu_s: float = 0.0

    @property
    def verdict(self) -> str:
        if self.result is None:
            return "not run"
        if self.result.wrong:
            return "failed"
        return "late" if self.result.late else "held"

    @property
    def is_bad(self) -> bool:
        """A late one is excused by a machine that had other things to do, and only by that."""
        return self.verdict == "failed" or (self.verdict == "late" and self.load <= _BUSY)


def run_one(bench: Bench, drill: Drill) -> Ran:
    """A drill that cannot be carried out has failed: nothing is proved."""
    if drill.run is None:
        return Ran(drill, None)
    began, spent = time.monotonic(), _cpu_s()
    try:
        result = drill.run(bench)
    except NotHere:
        return Ran(drill, None)
    except DrillFailed as e:
        result = Result(0, "could not be carried out", (str(e),))
    except Exception as e:  # the bench's own mistake: this drill proves nothing, the next may
        where = traceback.format_exc().splitlines()[-3:]
        result = Result(0, "could not be carried out", (f"{e!r}: {' '.join(where)}",))
    bench.site.end_all()
    bench.figures |= result.figures
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return Ran(drill, result, time.monotonic() - began, load, _cpu_s() - spent)


def _cpu_s() -> float:
    """Of this process and of all that it and its children have waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
