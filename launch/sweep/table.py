"""A sweep as people look at it: one line, and a row a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.driving.waiting import waiting_for
from launch.run.standing import Standing, standings
from launch.sweep.best import best_trials
from launch.sweep.cost import cost_so_far, waits_in_a_queue
from launch.sweep.folder import SweepFiles, is_carried, read_sweep
from launch.sweep.journal import Trial, lines_in, trials_of
from launch.sweep.metrics import lines_of, points_of
from launch.table import age_text, text_of
from trainer.records.json_file import read_lines

_HOUR = 3600.0


@dataclass(frozen=True)
class SweepStatus:
    """`gpu_hours`: of all ranks so far. `left_s`: about, at the pace so far; None: nobody knows."""

    sweep: str
    state: str
    trials: dict[str, int]
    total: int
    metrics: list[str]
    best: list[dict[str, Any]]
    gpu_hours: float
    left_s: float | None
    rows: list[dict[str, Any]]
    folder: str


def status_of_sweep(files: SweepFiles, *, now: float) -> SweepStatus:
    """From its folder; schedulers are asked once for all trials. `now`: seconds since the epoch."""
    sweep = read_sweep(files)["identity"]["sweep"]
    lines = list(lines_in(read_lines(files.trials)))
    trials = trials_of(lines)
    asked = max((int(line["total"]) for line in lines if line["event"] == "asked"), default=0)
    total = asked + sum(one.parent > 0 for one in trials.values())
    active = [n for n, one in trials.items() if one.state == "active"]
    there = dict(zip(active, standings([files.run(n) for n in active]), strict=True))
    costs = {n: one.rank_seconds for n, one in trials.items()}
    costs |= {n: cost_so_far(files.run(n), at, now=now) for n, at in there.items()}
    best = best_trials(trials, sweep["goals"])
    carried = is_carried(files)
    rows = [_row(files, one, costs[n], sweep["metrics"], best) for n, one in sorted(trials.items())]
    for row in rows:
        if (at := there.get(row["trial"])) is not None:
            row |= _standing(at)
    return SweepStatus(
        sweep=files.name,
        state=_state(trials, total, carried=carried),
        trials=dict(Counter(row["state"] for row in rows)),
        total=total,
        metrics=list(sweep["metrics"]),
        best=[row for row in rows if row["best"]],
        gpu_hours=round(sum(costs.values()) / _HOUR, 6),
        left_s=_left(lines, trials, total, now) if carried else None,
        rows=rows,
        folder=str(files.root),
    )


def _state(trials: Mapping[int, Trial], total: int, *, carried: bool) -> str:
    if carried:
        return "running"
    over = len(trials) >= total and all(one.has_ended for one in trials.values())
    return "finished" if over and trials else "stopped"


def _standing(at: Standing) -> dict[str, Any]:
    """Of an active trial: "queued" while it waits for its place, and what is said of that."""
    said = at.job.why if at.job is not None else waiting_for(at.files) if at.files else ""
    state = {"state": "queued"} if waits_in_a_queue(at) else {}
    return {**state, "why": said}


def _row(
    files: SweepFiles,
    trial: Trial,
    cost: float,
    metrics: Sequence[str],
    best: Sequence[Trial],
) -> dict[str, Any]:
    values: Sequence[float | None] = trial.values or tuple(
        _newest(files, trial, metric) for metric in metrics
    )
    return {
        "trial": trial.number,
        "state": trial.state,
        "best": any(one.number == trial.number for one in best),
        **dict(zip(metrics, values, strict=True)),
        "settings": " ".join(trial.overrides),
        "gpu_hours": round(cost / _HOUR, 6),
        "why": trial.why,
        "run": str(files.run(trial.number).root),
    }


def _newest(files: SweepFiles, trial: Trial, metric: str) -> float | None:
    points = points_of(lines_of(files.run(trial.number).metrics, metric), metric)
    return points[-1][1] if points else None


def _left(
    lines: Sequence[Mapping[str, Any]], trials: Mapping[int, Trial], total: int, now: float
) -> float | None:
    """At the pace at which trials have ended since the first began."""
    ended = sum(one.has_ended for one in trials.values())
    begun = next((line["time"] for line in lines if line["event"] == "started"), None)
    return (now - begun) / ended * (total - ended) if ended and begun is not None else None


def headline(status: SweepStatus) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(status.trials.items()))
    left = f", about {age_text(status.left_s)} left" if status.left_s is not None else ""
    return (
        f"{status.sweep}: {status.state}; {len(status.rows)} of {status.total} trials"
        f"{f' ({counts})' if counts else ''}, {status.gpu_hours:.3g} GPU-hours{left}"
    )


def as_text(status: SweepStatus) -> str:
    rows = [
        {
            k: ("*" if v else "") if k == "best" else v
            for k, v in row.items()
            if k not in ("why", "run")
        }
        for row in status.rows
    ]
    whys = Counter(row["why"] for row in status.rows if row["why"] and row["state"] == "failed")
    said = [f"{count} x {why}" for why, count in whys.items()]
    is_there = [row for row in status.rows if row["why"] and row["state"] in ("active", "queued")]
    said += [f"trial {row['trial']}: {row['why']}" for row in is_there]
    return "\n".join(part for part in [headline(status), text_of(rows), *said] if part)
