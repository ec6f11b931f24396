"""Check 8: how long from a fault to the first new step, and how many steps were made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def seconds_to_recover(fault_time: float, steps: Sequence[Mapping[str, Any]]) -> float | None:
    """From the fault to the end of the first step that no attempt had made before it.

    `steps`: step lines of all attempts. None: there was none. Units: seconds since the epoch.
    """
    before = [line for line in steps if line["time"] <= fault_time]
    furthest = max((line["step"] for line in before), default=0)
    after = [x["time"] for x in steps if x["time"] > fault_time and x["step"] > furthest]
    return min(after) - fault_time if after else None


def seconds_to_first_step(fault_time: float, steps: Sequence[Mapping[str, Any]]) -> float | None:
    """From the fault to the end of the first step of a later attempt, made before or not."""
    attempt = max((x["attempt"] for x in steps if x["time"] <= fault_time), default=0)
    after = [x["time"] for x in steps if x["attempt"] > attempt]
    return min(after) - fault_time if after else None


def recoveries(
    fault_times: Sequence[float], steps: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """`seconds_to_first_step` of each fault that no other fault followed before that step."""
    found = []
    ordered = sorted(fault_times)
    for at, following in zip(ordered, [*ordered[1:], float("inf")], strict=True):
        seconds = seconds_to_first_step(at, steps)
        if seconds is None or at + seconds < following:
            found.append(seconds)
    return found


def steps_redone(steps: Sequence[Mapping[str, Any]]) -> int:
    """Step lines beyond the first of each step."""
    return len(steps) - len({line["step"] for line in steps})


def slow_recoveries(seconds: Sequence[float | None], *, bound_s: float) -> list[str]:
    found = ["it did not recover" for one in seconds if one is None]
    late = [one for one in seconds if one is not None and one > bound_s]
    return found + [f"recovered after {one:.1f} s, more than {bound_s:g} s" for one in late]
