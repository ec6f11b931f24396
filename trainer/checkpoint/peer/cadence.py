"""How often a state is kept in memory: as the settings say, or as often as it costs 1 % of time.

What a state costs: the copy, for which training stands still, and what the process beside the rank
takes from it afterwards (checksums, the way to the neighbour) where no core is free. So steps with
a state under way are compared with the others.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Literal

from trainer.dist.world import World

STALL_SHARE = 0.01  # of the time, where the interval is chosen
_FIRST_LOOK = 6  # states until the interval is chosen; then whenever their number has doubled
_UNTIL_THEN = 4  # steps apart, so that there are some without a state under way
_LAST = 40

Every = int | Literal["auto"]


class Cadence:
    """Every so many steps; where that is chosen, states take at most 1 % of the time."""

    def __init__(self, every: Every, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._is_chosen = every == "auto"
        self._every = _UNTIL_THEN if every == "auto" else every
        self.why = f"every {self._every} steps"
        self._last = 0
        self._idle = deque[float](maxlen=_LAST)
        self._busy = deque[float](maxlen=_LAST)
        self._busy_laps = 0
        self._copy_s = 0.0  # of the step that is being made
        self._stalls = deque[float](maxlen=_LAST)
        self._at: tuple[int, float] | None = None
        self._copies, self._look = 0, _FIRST_LOOK

    @property
    def stall_s(self) -> float:
        return median(self._stalls) if self._stalls else 0.0

    def due(self, step: int) -> bool:
        if step - self._last < self._every:
            return False
        self._last = step
        return True

    @property
    def is_awaited(self) -> bool:
        """Whether the step that is being made ends with a state that was asked for by number."""
        if self._is_chosen or self._at is None:
            return False
        return self._at[0] + 1 - self._last >= self._every

    def go_back(self, step: int) -> None:
        self._last = min(self._last, step)

    def lap(self, step: int, *, busy: bool = False) -> None:
        """A step has ended; `busy`: a state was under way in it."""
        now = self._clock()
        if self._at is not None and self._at[0] == step - 1:
            (self._busy if busy else self._idle).append(now - self._at[1] - self._copy_s)
            self._busy_laps += busy
        self._copy_s = 0.0
        self._at = (step, now)

    def copied(self, world: World, seconds: float) -> None:
        """Collective where the interval is chosen."""
        self._copies += 1
        self._copy_s = seconds
        self._stalls.append(seconds)
        laps = self._idle or self._busy
        if not self._is_chosen or self._copies < self._look or not laps:
            return
        self._look = 2 * self._copies
        cost_s, step_s = world.max([self._cost_s(), median(laps)])
        self._every = max(1, math.ceil(cost_s / (STALL_SHARE * step_s) - 1e-6))
        self.why = (
            f"every {self._every} steps: a state takes {cost_s * 1e3:.3g} ms (its copy "
            f"{self.stall_s * 1e3:.3g}) and a step {step_s * 1e3:.3g} ms, and states may take "
            f"{STALL_SHARE:.0%}"
        )

    def _cost_s(self) -> float:
        """Seconds by which a state makes training later, on this rank."""
        if not self._idle or not self._busy:
            return self.stall_s
        # The last copy's steps are still to come.
        steps = self._busy_laps / max(1, self._copies - 1)
        return self.stall_s + steps * max(0.0, median(self._busy) - median(self._idle))
