"""All that a report says, read from a run folder alone. Nothing that is missing stops it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.run.attempts import read_lines_of
from launch.run.job_record import Job
from launch.run.run_folder import attempts
from launch.run.status import RunStatus, newest_plan, status_of
from trainer.records.account import Account, account
from trainer.records.json_file import read_lines
from trainer.records.lineage import Descent, read_lineage
from trainer.records.metrics import is_guard_line
from trainer.records.run_files import RunFiles

# Of a step's line, what is drawn; see trainer/reports.py for their units.
MEASURES = (
    "loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu", "memory_bytes",
    "data_s", "forward_s", "backward_s", "update_s", "step_s", "tokens_seen",
)  # fmt: skip
_NO_SCORES = {"kind", "attempt", "time", "step", "samples", "eval_seconds"}
_MOST_SAMPLES = 12


@dataclass(frozen=True)
class Curves:
    """`steps` in order; `of[name]` has a value a step, not a number where the line had none."""

    steps: tuple[int, ...]
    of: Mapping[str, tuple[float, ...]]

    def points(self, name: str) -> tuple[tuple[float, float], ...]:
        return tuple(
            (float(step), value)
            for step, value in zip(self.steps, self.of[name], strict=True)
            if not math.isnan(value)
        )

    def last(self, name: str) -> float | None:
        return next((value for value in reversed(self.of[name]) if math.isfinite(value)), None)


@dataclass(frozen=True)
class AttemptFacts:
    """An attempt as attempts.jsonl and lineage.jsonl tell it; None: it is not over, or not told."""

    number: int
    world_size: int | None
    from_step: int | None
    started: float | None
    ended: float | None
    why: str
    cause: str | None
    descent: Descent | None


@dataclass(frozen=True)
class RunFacts:
    """`scores`: (step, name -> value), by step. `samples`: (step, prompt, text), the newest."""

    status: RunStatus
    curves: Curves
    scores: tuple[tuple[int, Mapping[str, float]], ...]
    samples: tuple[tuple[int, str, str], ...]
    saves: tuple[Mapping[str, Any], ...]
    guarded: tuple[Mapping[str, Any], ...]
    attempts: tuple[AttemptFacts, ...]
    account: Account
    plan: Mapping[str, Any]

    @property
    def rank_seconds(self) -> float:
        """Seconds between start and end of each attempt, times its ranks; of those that ended."""
        return sum(
            (one.ended - one.started) * one.world_size
            for one in self.attempts
            if one.started is not None and one.ended is not None and one.world_size is not None
        )


def read_facts(run: RunFiles, job: Job | None = None) -> RunFacts:
    """`job`: what a scheduler says of the newest attempt, if it was handed over to one."""
    steps: dict[int, tuple[float, ...]] = {}
    scores: dict[int, dict[str, float]] = {}
    samples: list[tuple[int, str, str]] = []
    saves: list[Mapping[str, Any]] = []
    guarded: list[Mapping[str, Any]] = []
    for line in read_lines(run.metrics):  # one pass: a long run has a million lines
        kind = line.get("kind")
        if kind == "step":
            steps[line["step"]] = tuple(_number(line.get(name)) for name in MEASURES)
        elif kind == "eval":
            scores.setdefault(line["step"], {}).update(_scores(line))
            samples += [(line["step"], str(p), str(t)) for p, t in line.get("samples", ())]
        elif kind == "save":
            saves.append(line)
        elif is_guard_line(line):
            guarded.append(line)
    ordered = sorted(steps)
    columns = zip(*(steps[step] for step in ordered), strict=True)
    of = dict(zip(MEASURES, columns, strict=True)) if ordered else dict.fromkeys(MEASURES, ())
    return RunFacts(
        status=status_of(run, job, with_goodput=True),
        curves=Curves(tuple(ordered), of),
        scores=tuple((step, scores[step]) for step in sorted(scores) if scores[step]),
        samples=tuple(samples[-_MOST_SAMPLES:]),
        saves=tuple(saves),
        guarded=tuple(guarded),
        attempts=tuple(_attempts(run)),
        account=account(run.root),
        plan=newest_plan(run),
    )


def score_names(scores: Sequence[tuple[int, Mapping[str, float]]]) -> list[str]:
    """Each name once, in the order in which they first stand."""
    return list(dict.fromkeys(name for _, values in scores for name in values))


def _attempts(run: RunFiles) -> list[AttemptFacts]:
    ends = {line.get("attempt"): line for line in read_lines_of(run)}
    descents = {one.attempt: one for one in read_lineage(run.lineage)}
    made = []
    for files in attempts(run):
        end = ends.get(files.number, {})
        descent = descents.get(files.number)
        made.append(
            AttemptFacts(
                number=files.number,
                world_size=end.get("world_size") or (descent.world_size if descent else None),
                from_step=descent.step if descent else end.get("from_step"),
                started=end.get("started") or (descent.time if descent else None),
                ended=end.get("ended"),
                why=str(end.get("why", "it is not over")),
                cause=end.get("cause"),
                descent=descent,
            )
        )
    return made


def _scores(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in line.items()
        if name not in _NO_SCORES and isinstance(value, (int, float))
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
