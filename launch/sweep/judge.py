"""Judgements over all trials of a sweep, from what the journal says of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.sweep.brackets import Bracket
from launch.sweep.journal import GOOD, Trial
from launch.sweep.meeting import Meeting
from launch.sweep.rungs import best_of, goes_on

_SAME = 3  # trials with one error and no good one, before it is nobody's chance


def next_rung(trial: Trial, steps: Sequence[int]) -> int | None:
    return steps[trial.level] if trial.level < len(steps) else None


def passed(
    trial: Trial, trials: Mapping[int, Trial], steps: Sequence[int], *, factor: int
) -> tuple[int, str]:
    """Rungs that an active trial passes now, and why it does not pass the next; "" if it may.

    A rung is decided once, when it is reached: others may fall behind this one later.
    """
    count = 0
    for step in steps[trial.level :]:
        if step not in trial.rungs:
            break
        others = [
            one.rungs[step]
            for one in trials.values()
            if one.number != trial.number and step in one.rungs
        ]
        if not goes_on(trial.rungs[step], others, factor=factor):
            return count, f"behind {len(others)} others at step {step}"
        count += 1
    return count, ""


def meetings(
    trials: Mapping[int, Trial], brackets: Sequence[Bracket], *, total: int, factor: int
) -> list[Meeting]:
    """Brackets of which all are proposed, and wait at a rung or have ended."""
    found = []
    for bracket in brackets:
        members = [one for n, one in trials.items() if bracket.first <= n <= bracket.last]
        is_whole = len(trials) >= min(bracket.last, total)
        paused = [one for one in members if one.state == "paused"]
        if not paused or not is_whole or any(m.state in ("active", "waiting") for m in members):
            continue
        step = next_rung(paused[0], bracket.steps)
        assert step is not None
        costs = {one.number: one.rungs[step] for one in paused}
        best = best_of(costs, factor=factor)
        others = [number for number in sorted(costs) if number not in best]
        found.append(Meeting(step, tuple(best), tuple(others)))
    return found


def same_error(trials: Mapping[int, Trial], *, total: int) -> str:
    """What all trials have failed with, once it cannot be chance; "" otherwise."""
    found = list(trials.values())
    if any(one.state in GOOD or one.rungs or one.state == "diverged" for one in found):
        return ""
    said = [one.why for one in found if one.state == "failed"]
    return said[0] if len(said) >= min(_SAME, total) and len(set(said)) == 1 else ""
