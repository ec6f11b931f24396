"""Settings of the numerics guard."""

from __future__ import annotations

from typing import Any

from trainer.config.sections.guard import GuardSection


def guard_rules(**changes: Any) -> GuardSection:
    """Small numbers, so that a test of twenty steps sees every rung."""
    values: dict[str, Any] = {
        "non_finite": "skip",
        "spike": "skip",
        "spike_sigmas": 10,
        "window": 16,
        "max_skips": 3,
        "skip_window": 10,
        "max_rewinds": 2,
        "replica_check_every": 0,
        "max_incidents": 2,
    }
    return GuardSection(**values | changes)
