"""Whether a task's answers are right as often as it is sure of them: sums beside its scores.

Shapes: E examples of the batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from trainer.evals.metrics.base import Sums, named, taken
from trainer.evals.metrics.calibration import Calibration

_NAME = "sure"
CALIBRATION = Calibration()


@runtime_checkable
class Calibrated(Protocol):
    """What a Task has beside `values`, if it says how sure it is."""

    def calibration(self, sums: Mapping[str, float]) -> tuple[Calibration, Sums] | None:
        """None where an answer is no one choice."""


def sums_of_classes(
    logits_EC: torch.Tensor, classes_E: torch.Tensor, *, real_E: torch.Tensor
) -> dict[str, float]:
    """Of the likeliest class of each example that is real."""
    logits_EC = logits_EC[real_E].float()
    sure_E, chosen_E = logits_EC.softmax(-1).max(-1)
    right_E = chosen_E == classes_E[real_E]
    return sums_named(CALIBRATION.sums_of(sure_E.cpu().numpy(), right_E.cpu().numpy()))


def sums_named(sums: Sums) -> dict[str, float]:
    return named(_NAME, sums)


def sums_taken(sums: Mapping[str, float]) -> Sums:
    return taken(_NAME, CALIBRATION.size, sums)


def calibration_error(sums: Mapping[str, float]) -> dict[str, float]:
    """Expected, by its name as a score; NaN where nothing was answered."""
    return {"calibration_error": CALIBRATION.value(sums_taken(sums))["calibration_error"]}
