"""The figures of one run, and of several over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.report.facts import Curves, RunFacts, score_names
from launch.table import age_text
from trainer.drawing.curves import Series, bars_figure, curves_figure
from trainer.drawing.shapes import Drawing
from trainer.records.account import CATEGORIES, Account

# measure -> (title, factor)
_DRAWN = {
    "loss": ("loss", 1.0),
    "grad_norm": ("gradient norm before clipping", 1.0),
    "learning_rate": ("learning rate", 1.0),
    "tokens_per_second": ("tokens per second, all ranks", 1.0),
    "mfu": ("MFU, % of the peak that metrics.jsonl names", 100.0),
    "memory_bytes": ("memory of the fullest rank, GiB", 1 / 2**30),
}
_PHASES = {
    "data_s": "waiting for data",
    "forward_s": "forward",
    "backward_s": "backward",
    "update_s": "update",
}
_MEANT = {
    "step": "steps done for the first time",
    "redone": "steps done again",
    "warm_up": "first steps beyond a step's time",
    "idle": "no attempt ran",
    "unknown": "nobody kept it",
}


def curves_of(facts: RunFacts) -> list[Drawing]:
    """Loss first; a curve that has no number at all is left out."""
    marks = _marks(facts)
    drawn = []
    for name, (title, factor) in _DRAWN.items():
        points = _scaled(facts.curves, name, factor)
        if points:
            drawn.append(curves_figure(title, [Series("", points)], marks=marks))
    drawn += [_score(facts.scores, name, marks) for name in score_names(facts.scores)]
    return drawn


def overlaid(runs: Mapping[str, RunFacts]) -> list[Drawing]:
    """The same measures of several runs over each other, by step."""
    drawn = []
    for name, (title, factor) in _DRAWN.items():
        series = [Series(run, _scaled(facts.curves, name, factor)) for run, facts in runs.items()]
        if any(one.points for one in series):
            drawn.append(curves_figure(title, series, size=(960, 280)))
    for name in dict.fromkeys(n for facts in runs.values() for n in score_names(facts.scores)):
        series = [
            Series(run, tuple((float(s), v[name]) for s, v in facts.scores if name in v))
            for run, facts in runs.items()
        ]
        drawn.append(curves_figure(f"held out: {name}", series, size=(960, 280)))
    return drawn


def waterfall(spent: Account) -> Drawing:
    """Every second of wall time in one bar, the longest first after the steps themselves."""
    others = sorted(
        (name for name in CATEGORIES if name != "step" and spent.seconds[name] > 0),
        key=lambda name: -spent.seconds[name],
    )
    rows = [
        (name.replace("_", " "), spent.seconds[name], _share(name, spent))
        for name in ("step", *others)
    ]
    return bars_figure(f"{age_text(spent.wall_s)} of wall time", rows)


def phases(curves: Curves) -> Drawing | None:
    """Mean seconds of the logged steps by phase; None where no step was logged."""
    means = {
        words: _mean([value for _, value in curves.points(name)])
        for name, words in _PHASES.items()
        if curves.points(name)
    }
    if not means:
        return None
    rows = [(words, value, f"{value:.4f} s") for words, value in means.items()]
    return bars_figure("a step, by phase of rank 0", rows)


def _score(
    scores: Sequence[tuple[int, Mapping[str, float]]], name: str, marks: list[tuple[float, str]]
) -> Drawing:
    points = tuple((float(step), values[name]) for step, values in scores if name in values)
    return curves_figure(f"held out: {name}", [Series(name, points)], marks=marks)


def _marks(facts: RunFacts) -> list[tuple[float, str]]:
    """Where each attempt but the first went on."""
    return [
        (float(one.from_step), f"attempt {one.number}")
        for one in facts.attempts
        if one.number > 1 and one.from_step
    ]


def _scaled(curves: Curves, name: str, factor: float) -> tuple[tuple[float, float], ...]:
    return tuple((step, value * factor) for step, value in curves.points(name))


def _share(name: str, spent: Account) -> str:
    seconds = spent.seconds[name]
    share = seconds / spent.wall_s if spent.wall_s else 0.0
    meaning = f"  {_MEANT[name]}" if name in _MEANT else ""
    return f"{seconds:,.1f} s  {share:.1%}{meaning}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
