"""Check 6: the ledger's categories add up to the wall time that its own clock saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.records.account import Account
from trainer.records.ledger import Event

_SHARE = 0.01
_LEAST_S = 0.05  # lines are rounded to milliseconds


def wrong_ledger(
    events: Sequence[Event], spent: Account, steps: Sequence[Mapping[str, Any]]
) -> list[str]:
    """`events`: of one node and one boot, oldest first. `steps`: step lines of all attempts."""
    if not events:
        return ["there is no ledger"]
    found = []
    wall = events[-1].clock - events[0].clock
    apart = abs(sum(spent.seconds.values()) - wall)
    if apart > max(_SHARE * wall, _LEAST_S):
        found.append(f"the ledger accounts for {wall - apart:.2f} or more of {wall:.2f} s")
    negative = [name for name, seconds in spent.seconds.items() if seconds < -_LEAST_S]
    found += [f"the ledger has {spent.seconds[name]:.2f} s of {name}" for name in negative]
    # The last minute of an attempt whose agent was killed is in no ledger, but in the metrics.
    whole = {event.attempt for event in events if event.event == "ended"}
    made = [line["attempt"] for line in steps]
    known = sum(attempt in whole for attempt in made)
    # A killed rank may have counted its last step and not written it, or the other way round.
    slack = len(set(made))
    if not known - slack <= spent.steps <= len(made) + slack:
        found.append(f"the ledger counts {spent.steps} steps, metrics.jsonl has {len(made)}")
    return found
