"""What a sweep may cost, in rank-seconds. Never exceeded: trials are told to stop while what they
need to save is still paid for, and none begins that the rest would not pay.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.sections.sweep import SweepSection
from trainer.errors import ConfigError, Problem

_HOUR = 3600.0


@dataclass
class Budget:
    """`limit`: rank-seconds in all, None: no limit. `ranks` of a trial. `brake_s`: from the moment
    at which it is found that the money is gone until all ranks have left.
    """

    limit: float | None
    ranks: int
    brake_s: float
    measured: float = 0.0  # rank-seconds of the whole trial that took the most
    projected: float = 0.0  # ... that active ones will have taken, before any is whole

    @classmethod
    def of(cls, section: SweepSection, *, ranks: int, grace_s: float) -> Budget:
        """Raises: ConfigError for a budget that one trial would not fit into."""
        limits = []
        budget = section.budget
        if budget.gpu_hours is not None:
            limits.append((budget.gpu_hours * _HOUR, "gpu_hours"))
        if budget.money is not None and budget.price is not None:
            limits.append((budget.money / budget.price * _HOUR, "money"))
        found = cls(min(limits)[0] if limits else None, ranks, grace_s + 2 * section.poll_s)
        longest = (section.trial_hours or 0.0) * _HOUR * ranks
        least = max(longest, ranks * found.brake_s)
        if found.limit is not None and found.limit < least:
            what = (
                f"pays for {found.limit / _HOUR:.3g} GPU-hours, and one trial of {ranks} ranks may "
                f"take {least / _HOUR:.3g}"
            )
            name = min(limits)[1]
            raise ConfigError([Problem(f"sweep.budget.{name}", what, "more, or a smaller trial")])
        return found

    @property
    def trial_s(self) -> float:
        """Rank-seconds of a whole trial, as far as is known."""
        return self.measured or self.projected

    def is_spent(self, spent: float, *, active: int) -> bool:
        """Whether the active trials must be told to stop now."""
        return self.limit is not None and spent + active * self.ranks * self.brake_s >= self.limit

    def allows_another(self, spent: float, promised: float, *, before: float = 0.0) -> bool:
        """`promised`: what others may still take. `before`: what this one has cost already."""
        if self.limit is None:
            return True
        least = self.ranks * self.brake_s
        needs = max(self.trial_s - before, least)
        return spent + promised + needs < self.limit

    def left_of(self, spent: float) -> float:
        """What a trial may still take that has cost so much."""
        return max(self.trial_s - spent, self.ranks * self.brake_s)

    def expect(self, cost: float) -> None:
        """A whole trial took so much."""
        self.measured = max(self.measured, cost)
