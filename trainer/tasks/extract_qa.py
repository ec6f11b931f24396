"""Answers to questions as stretches of their contexts, which may take several windows.

Terms are windows: the loss of one is the mean of the cross-entropies of start and end over its own
tokens, the first token (no answer here) included. Shapes: E examples (windows) of the batch, R
rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import ExampleBatch
from trainer.evals.metrics.base import Sums, named, ratio, taken
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.squad import Squad
from trainer.objectives.cross_entropy import span_loss_sum
from trainer.tasks.confidence import (
    CALIBRATION,
    calibration_error,
    sums_named,
    sums_taken,
)
from trainer.tasks.parts import Part

Scores = NDArray[np.float32]


class ExtractQa:
    """`model` is a trainer.models EncoderModel with a span head, perhaps inside an engine's."""

    def __init__(
        self,
        *,
        answer_tokens: int,
        no_answer: bool,
        threshold: float,
        label_smoothing: float = 0.0,
    ) -> None:
        """`label_smoothing`: over a window's places; of the loss that is trained on alone."""
        self._label_smoothing = label_smoothing
        self._answer_tokens = answer_tokens
        self._no_answer = no_answer
        self._threshold = threshold
        self._squad = Squad("2.0" if no_answer else "1.1")

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        logits_2RT = model(batch.fields, want="spans")
        return _loss_sum(logits_2RT, batch.fields, label_smoothing=self._label_smoothing)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        """Of windows alone; answers need all windows of a question (`score_parts`)."""
        return self._sums(model(batch.fields, want="spans"), batch)

    @torch.no_grad()
    def score_parts(
        self, model: torch.nn.Module, batch: ExampleBatch
    ) -> tuple[dict[str, float], list[Part]]:
        logits_2RT = model(batch.fields, want="spans")
        return self._sums(logits_2RT, batch), list(self._windows(logits_2RT, batch))

    def sums_of_best(self, best: Sequence[Part], *, left_out: int) -> dict[str, float]:
        found = np.zeros(self._squad.size + CALIBRATION.size)
        for part in best:
            is_none = self._no_answer and part.least - part.score > self._threshold
            found += np.asarray(part.gains[int(is_none)])
        answers, sure = np.split(found, [self._squad.size])
        return named("answers", answers) | sums_named(sure) | {"left_out": float(left_out)}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        loss = ratio(sums.get("loss", 0.0), sums.get("terms", 0.0))
        found = taken("answers", self._squad.size, sums)
        values = {"loss": loss, **self._squad.value(found), **calibration_error(sums)}
        if sums.get("left_out"):
            values["questions_left_out"] = sums["left_out"]
        return values

    def calibration(self, sums: Mapping[str, float]) -> tuple[Calibration, Sums] | None:
        return CALIBRATION, sums_taken(sums)

    def _sums(
        self, logits_2RT: tuple[torch.Tensor, torch.Tensor], batch: ExampleBatch
    ) -> dict[str, float]:
        loss = _loss_sum(logits_2RT, batch.fields).item()
        return {"terms": float(batch.terms), "loss": loss}

    def _windows(
        self, logits_2RT: tuple[torch.Tensor, torch.Tensor], batch: ExampleBatch
    ) -> Iterator[Part]:
        starts_RT, ends_RT = (x.float().cpu().numpy() for x in logits_2RT)
        fields = {n: batch.fields[n].cpu().numpy() for n in ("first_E", "documents_RT")}
        begins_RT = batch.fields["begins_RT"].cpu().numpy()
        stops_RT = batch.fields["ends_RT"].cpu().numpy()
        width = starts_RT.shape[1]
        for first, said in zip(fields["first_E"].tolist(), batch.text, strict=False):
            row, place = divmod(first, width)
            length = int((fields["documents_RT"][row] == fields["documents_RT"][row, place]).sum())
            at = slice(place, place + length)
            starts_T, ends_T = starts_RT[row, at], ends_RT[row, at]
            inside_T = begins_RT[row, at] >= 0
            score, (a, b) = best_span(starts_T, ends_T, inside_T, longest=self._answer_tokens)
            text = ""
            if np.isfinite(score):
                text = said["context"][begins_RT[row, place + a] : stops_RT[row, place + b]]
            none = float(starts_T[0]) + float(ends_T[0])
            mass = _log_sum(starts_T) + _log_sum(ends_T)
            yield self._part(said, score, none=none, text=text, mass=mass)

    def _part(
        self, said: Mapping[str, Any], score: float, *, none: float, text: str, mass: float
    ) -> Part:
        """How sure an answer is: the chance of its start times that of its end in the window."""
        chosen, nothing = (
            self._gain(answer, said["answers"], sure=float(np.exp(own - mass)))
            for answer, own in ((text, score), ("", none))
        )
        return Part(
            example=said["record"],
            number=said["window"],
            parts=said["windows"],
            score=score,
            least=none,
            gains=(tuple(chosen.tolist()), tuple(nothing.tolist())),
        )

    def _gain(self, answer: str, references: Sequence[str], *, sure: float) -> Sums:
        sums = self._squad.sums_of(answer, references)
        right = sums[0] + sums[3]  # exact, of a question with an answer or without
        return np.concatenate([sums, CALIBRATION.sums_of([sure], [right])])


def _log_sum(values_T: Scores) -> float:
    highest = float(values_T.max())
    return highest + float(np.log(np.exp(values_T.astype(np.float64) - highest).sum()))


def best_span(
    starts_T: Scores, ends_T: Scores, inside_T: NDArray[np.bool_], *, longest: int
) -> tuple[float, tuple[int, int]]:
    """The highest start + end of a span within `inside_T` of at most `longest` tokens, and its
    first and last token; of equals the shortest, then the first. -inf where there is no span.

    Source: Devlin et al. 2019 (BERT), sec. 4.2: the best of all spans with end >= start.
    """
    starts_T = np.where(inside_T, starts_T, -np.inf).astype(np.float64)
    ends_T = np.where(inside_T, ends_T, -np.inf).astype(np.float64)
    best, span = -np.inf, (0, 0)
    for more in range(min(longest, len(starts_T))):
        sums = starts_T[: len(starts_T) - more] + ends_T[more:]
        first = int(sums.argmax())
        if sums[first] > best:
            best, span = float(sums[first]), (first, first + more)
    return best, span


def _loss_sum(
    logits_2RT: tuple[torch.Tensor, torch.Tensor],
    fields: Mapping[str, torch.Tensor],
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    first_E, documents_RT = fields["first_E"].clamp(min=0), fields["documents_RT"]
    width = documents_RT.shape[1]
    row_E, place_E = first_E // width, first_E % width
    own_ET = documents_RT[row_E] == documents_RT.flatten()[first_E].unsqueeze(-1)
    spans_E2 = fields["spans_EC"] + place_E.unsqueeze(-1)
    return span_loss_sum(
        (logits_2RT[0][row_E], logits_2RT[1][row_E]),
        (spans_E2[:, 0], spans_E2[:, 1]),
        weights_E=fields["weights_E"],
        allowed_ET=own_ET,
        label_smoothing=label_smoothing,
    )
