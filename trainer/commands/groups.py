"""`longhaul evaluate RUN --by COLUMN`: the task's scores for each group of held-out examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.data.held_out_groups import held_out_groups
from trainer.dist.world import Alone
from trainer.evals.totals import total_scores
from trainer.plan import RunPlan
from trainer.tasks.base import Task, values_of

_SHOWN = 6  # scores in the table; all of them are in --json


@dataclass(frozen=True)
class GroupScores:
    """`scores`: by group, "terms" first; `gaps`: by score, the best group's less the worst's."""

    column: str
    scores: Mapping[str, Mapping[str, float]]

    @property
    def gaps(self) -> dict[str, float]:
        each = list(self.scores.values())
        names = [name for name in (each[0] if each else ()) if name != "terms"]
        known = {n: [s[n] for s in each if n in s and not math.isnan(s[n])] for n in names}
        return {name: max(values) - min(values) for name, values in known.items() if values}

    def as_json(self) -> dict[str, Any]:
        plain = {
            group: {n: None if math.isnan(v) else v for n, v in scores.items()}
            for group, scores in self.scores.items()
        }
        return {"by": self.column, "groups": plain, "gaps": self.gaps}

    def show(self) -> None:
        names = list(next(iter(self.scores.values()), {}))[: _SHOWN + 1]
        width = max(len(group) for group in ("gap", self.column, *self.scores))
        print(f"by {self.column}")
        wide = {name: max(len(name) + 2, 17) for name in names}
        first = wide.get("terms", 0)
        print(f"  {'':{width}}" + "".join(f"{name:>{wide[name]}}" for name in names))
        for group, scores in self.scores.items():
            values = "".join(f"{scores[n]:>{wide[n]}.4f}" for n in names[1:])
            print(f"  {group:{width}}{int(scores['terms']):>{first},}{values}")
        gaps = "".join(f"{self.gaps.get(n, math.nan):>{wide[n]}.4f}" for n in names[1:])
        print(f"  {'gap':{width}}{'':>{first}}{gaps}")


@torch.no_grad()
def group_scores(
    plan: RunPlan,
    task: Task,
    model: torch.nn.Module,
    *,
    column: str,
    rows: int,
    device: torch.device,
) -> GroupScores:
    """Of the same held-out rows as the scores of all. Raises: as `held_out_groups`."""
    found: dict[str, dict[str, float]] = {}
    for group, batches in held_out_groups(plan, column, rows=rows).items():
        totals = total_scores(Alone(device), task, model, batches, device=device)
        found[group] = {"terms": totals["terms"], **values_of(task, totals)}
    return GroupScores(column, found)
