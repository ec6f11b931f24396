"""Interleaved rounds of several arms, and the table of their paired ratios."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def interleaved(arms: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Each arm once a round, ours first; the first round only warms up and is left out."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            value = run()
            if number:
                found[name].append(value)
    return found


def summary(found: Mapping[str, list[float]], *, ours: str) -> dict[str, dict[str, float]]:
    """Median of each arm, and the median and range of its ratio to ours within a round."""
    rows = {}
    for name, values in found.items():
        ratios = [v / o for v, o in zip(values, found[ours], strict=True)]
        rows[name] = {
            "median": statistics.median(values),
            "best": min(values),  # on a busy machine the least disturbed round
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return rows


def report(title: str, rows: Mapping[str, Mapping[str, float]], *, json_path: Path | None) -> None:
    print(f"{title}   (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores)")
    print(f"{'':44} {'best':>12} {'median':>12} {'x ours':>9}   range")
    for name, row in rows.items():
        span = f"{row['ratio_low']:.2f} .. {row['ratio_high']:.2f}"
        numbers = f"{row['best']:>12.4f} {row['median']:>12.4f} {row['ratio']:>9.2f}"
        print(f"{name:44} {numbers}   {span}")
    if json_path is not None:
        value: dict[str, Any] = {"title": title, "load": os.getloadavg(), "arms": rows}
        json_path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
