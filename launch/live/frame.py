"""What one frame of `longhaul watch` says: runs under each other, each with its curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.live.curve import drawn
from launch.live.follow import Point
from launch.live.phases import RankPhase, text_of
from launch.run.status import RunStatus
from launch.table import age_text

_TALLEST = 14  # lines of a curve


@dataclass(frozen=True)
class RunView:
    """What is shown of a run. `curves`: points by the name of a metric."""

    status: RunStatus
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    phases: Sequence[RankPhase] = ()
    evaluated: Mapping[str, object] = field(default_factory=dict)


def frame(views: Sequence[RunView], *, size: tuple[int, int], ascii_only: bool) -> list[str]:
    """Lines for a terminal of `size` (columns, rows): what there is room for, curves last."""
    columns, rows = size
    texts = [_texts(view) for view in views]
    curves = sum(bool(points) for view in views for points in view.curves.values())
    room = rows - sum(map(len, texts)) - curves - (len(views) - 1)  # a heading each; blank lines
    height = min(room // curves, _TALLEST) if curves else 0
    lines: list[str] = []
    for view, text in zip(views, texts, strict=True):
        lines += [*([""] if lines else []), *text]
        for name, points in view.curves.items():
            if points and height >= 1:
                lines += _curve(name, points, columns, height, ascii_only=ascii_only)
    return lines


def _curve(
    name: str, points: Sequence[Point], columns: int, height: int, *, ascii_only: bool
) -> list[str]:
    heading = f"  {name}, steps {points[0][0]:,} to {points[-1][0]:,}"
    lines = drawn(points, width=columns - 2, height=height, ascii_only=ascii_only)
    return [heading, *(f"  {line}" for line in lines)]


def _texts(view: RunView) -> list[str]:
    found = [_headline(view.status)]
    scores = [
        f"{name.removeprefix('eval_')} {value:.4g}"
        for name, value in view.evaluated.items()
        if name.startswith("eval_") and name != "eval_seconds" and isinstance(value, int | float)
    ]
    if scores:
        found.append(f"  held out, step {view.evaluated.get('step')}: {', '.join(scores)}")
    if view.phases:
        found.append(f"  ranks: {text_of(view.phases)}")
    if view.status.why:
        found.append(f"  {view.status.why}")
    return [_printable(line) for line in found]


def _printable(line: str) -> str:
    """What a program printed may be quoted here; nothing of it may move the cursor."""
    return "".join(c if c.isprintable() else " " for c in line)


def _headline(one: RunStatus) -> str:
    step = f"step {one.step:,}"
    if one.total:
        step += f" of {one.total:,} ({one.step / one.total:.0%})"
    parts = [f"{one.run}: {one.state_text}", step]
    if one.loss is not None:
        parts.append(f"loss {one.loss:.4g}")
    if one.tokens_per_second:
        parts.append(f"{one.tokens_per_second:,.0f} tokens/s")
    if one.attempt > 1:
        parts.append(f"attempt {one.attempt}")
    if one.checkpoint:
        parts.append(f"saved at {one.checkpoint:,}")
    if one.goodput:  # a ledger says nothing for the first minute
        parts.append(f"goodput {one.goodput:.0%}")
    if one.left_s is not None:
        parts.append(f"{age_text(one.left_s)} left")
    return ", ".join(parts)
