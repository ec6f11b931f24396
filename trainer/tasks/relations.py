"""Which relation holds between two marked entities of a text, its direction included.

Terms are examples. What is classified is the state of the first token of a text with markers
around both entities, so that an export is a plain sequence classifier.
Source: Baldini Soares et al. 2019, "Matching the Blanks", section 3.3 (markers, [CLS]).
Shapes: E examples of the batch, C labels.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trainer.batch import ExampleBatch
from trainer.errors import ConfigError, Problem
from trainer.evals.metrics.base import Sums, named, ratio, taken
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.relations import Relation, RelationF1
from trainer.objectives.cross_entropy import class_loss_sum
from trainer.tasks.confidence import (
    CALIBRATION,
    calibration_error,
    sums_of_classes,
    sums_taken,
)

_DIRECTED = re.compile(r"(.+)\((e1,e2|e2,e1)\)")  # SemEval-2010 task 8
_HEAD, _TAIL = "e1", "e2"


class Relations:
    """`model` is a trainer.models EncoderModel with a sequence head, perhaps inside an engine's."""

    def __init__(
        self,
        labels: Sequence[str],
        *,
        none: str | None,
        symmetric: Sequence[str],
        label_smoothing: float = 0.0,
    ) -> None:
        """`none`: the label that says there is no relation; `symmetric`: types, see RelationF1;
        `label_smoothing`: of the loss that is trained on.

        Raises: ConfigError if there is no such label or type.
        """
        self._relations = [relation_of(label, none=none) for label in labels]
        types = sorted({r.type for found in self._relations for r in found})
        if labels:  # none are known before the data is prepared
            _check("task.none", [none] if none is not None else [], labels)
            _check("task.symmetric", symmetric, types)
        self._label_smoothing = label_smoothing
        self._metric = RelationF1(tuple(types), frozenset(symmetric))

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        logits_EC = model(batch.fields, want="sequence")
        return _loss_sum(logits_EC, batch, label_smoothing=self._label_smoothing)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        logits_EC = model(batch.fields, want="sequence")
        chosen_E = logits_EC.float().argmax(-1).tolist()
        classes_E = batch.fields["classes_E"].tolist()
        real_E = (batch.fields["weights_E"] > 0).tolist()
        found, correct = np.zeros(self._metric.size), 0
        for chosen, actual, real in zip(chosen_E, classes_E, real_E, strict=True):
            if real:
                correct += chosen == actual
                found += self._metric.sums_of(self._relations[chosen], self._relations[actual])
        loss = _loss_sum(logits_EC, batch).item()
        sums = {"terms": float(batch.terms), "loss": loss, "correct": float(correct)}
        sums |= named("answers", found)
        real = batch.fields["weights_E"] > 0
        return sums | sums_of_classes(logits_EC, batch.fields["classes_E"], real_E=real)

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        terms = sums.get("terms", 0.0)
        return {
            "loss": ratio(sums.get("loss", 0.0), terms),
            "accuracy": ratio(sums.get("correct", 0.0), terms),
            **self._metric.value(taken("answers", self._metric.size, sums)),
            **calibration_error(sums),
        }

    def calibration(self, sums: Mapping[str, float]) -> tuple[Calibration, Sums] | None:
        return CALIBRATION, sums_taken(sums)


def relation_of(label: str, *, none: str | None) -> tuple[Relation, ...]:
    """ "Cause-Effect(e2,e1)" goes from the second entity to the first; without such an end a label
    goes from the first to the second. `none` is no relation."""
    if label == none:
        return ()
    directed = _DIRECTED.fullmatch(label)
    if directed is None:
        return (Relation(label, _HEAD, _TAIL),)
    head, tail = directed[2].split(",")
    return (Relation(directed[1], head, tail),)


def _check(where: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"{where}={near[0]}" if near else "name one of those, or leave it out"
            raise ConfigError([Problem(where, f"{name!r} is none of the data's ({shown})", fix)])


def _loss_sum(
    logits_EC: torch.Tensor, batch: ExampleBatch, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    fields = batch.fields
    return class_loss_sum(
        logits_EC,
        fields["classes_E"],
        weights_E=fields["weights_E"],
        label_smoothing=label_smoothing,
    )
