"""How often a state is kept in memory: as the settings say, or as often as copies cost 1 %."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Literal

from trainer.dist.world import World

STALL_SHARE = 0.01  # of a step's time, where the interval is chosen
_FIRST_LOOK = 6  # states until the interval is chosen; then whenever their number has doubled
_LAST = 20

Every = int | Literal["auto"]


class Cadence:
    """Every so many steps; where that is chosen, a copy takes at most 1 % of the time."""

    def __init__(self, every: Every, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._is_chosen = every == "auto"
        self._every = 1 if every == "auto" else every
        self.why = f"every {self._every} steps"
        self._last = 0
        self._laps = deque[float](maxlen=_LAST)
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

    def lap(self, step: int) -> None:
        now = self._clock()
        if self._at is not None and self._at[0] == step - 1:
            self._laps.append(now - self._at[1])
        self._at = (step, now)

    def copied(self, world: World, seconds: float) -> None:
        """Collective where the interval is chosen."""
        self._copies += 1
        self._stalls.append(seconds)
        if not self._is_chosen or self._copies < self._look or not self._laps:
            return
        self._look = 2 * self._copies
        stall_s, step_s = world.max([self.stall_s, median(self._laps)])
        self._every = max(1, math.ceil(stall_s / (STALL_SHARE * step_s) - 1e-6))
        self.why = (
            f"every {self._every} steps: a copy takes {stall_s * 1e3:.2g} ms and a step "
            f"{step_s * 1e3:.3g} ms, and copies may take {STALL_SHARE:.0%}"
        )
