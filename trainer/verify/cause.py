"""From a recorded incident and its repetitions to one cause.

    the repetition gives other numbers            hardware: some rank computed or held another value
    the same, but finite in fp32                  numeric: the precision
    the same in fp32 too, and rows are far off    data: these rows; others are as usual
    the same, and no row stands out               numeric: the weights or the learning rate

Pure: numbers in, a verdict out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cause = Literal["data", "numeric", "hardware"]


@dataclass(frozen=True)
class Repetition:
    """The step once more. `shares`: of each micro-step, in the order of the recorded ones."""

    loss: float
    grad_norm: float
    shares: Sequence[float]

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class RowLoss:
    sample: int
    loss: float  # mean over the row's terms
    origin: str = ""  # source, row, document


@dataclass(frozen=True)
class Evidence:
    """`owners`: the rank of each share. `usual`: loss of other rows with the same weights.

    `usual_was`: it is that of the steps before instead: no rows are held out.
    """

    recorded: Repetition
    owners: Sequence[int]
    again: Sequence[Repetition]  # in the recorded precision, the same each time if all is well
    in_fp32: Repetition | None
    rows: Sequence[RowLoss]
    usual: float
    tolerance: float  # relative; of rounding in another order
    usual_was: bool = False


@dataclass(frozen=True)
class Finding:
    cause: Cause
    why: str
    rows: tuple[RowLoss, ...] = ()  # far off
    ranks: tuple[int, ...] = ()  # whose numbers are not those of the repetition


def cause_of(evidence: Evidence) -> Finding:
    first, *others = evidence.again
    if any(not _alike(first, other, evidence.tolerance) for other in others):
        why = "this machine gives another answer each time: its own device is not to be trusted"
        return Finding("hardware", why)
    if not _alike(evidence.recorded, first, evidence.tolerance):
        return _hardware(evidence, first)
    if evidence.in_fp32 is not None and _is_calmer(evidence.in_fp32, evidence.recorded):
        why = "it happens on one process too, but not in fp32: the precision cannot hold it"
        return Finding("numeric", why)
    far = tuple(row for row in evidence.rows if is_far_off(row.loss, evidence.usual))
    are_all = len(far) == len(evidence.rows)
    if far and math.isfinite(evidence.usual) and not (are_all and evidence.usual_was):
        whose = "with the same weights other rows have"
        if evidence.usual_was:
            whose = "the steps before had"
        why = f"{len(far)} of {len(evidence.rows)} rows are far off; {whose} a loss of"
        return Finding("data", f"{why} {evidence.usual:.4f}", rows=far)
    why = "it happens on one process and in fp32 too, and no row stands out"
    if far and evidence.usual_was:
        why = f"{why}: all are far off, and none are held out to tell whether others are too"
    elif not math.isfinite(evidence.usual):
        why = f"{why}: other rows are not finite either, so the weights have gone wrong"
    return Finding("numeric", f"{why}; lower optimizer.learning_rate, or go back further")


def is_far_off(loss: float, usual: float) -> bool:
    """Rows differ: half as much again and one nat more is beyond what a row of text does."""
    return not math.isfinite(loss) or loss > 1.5 * usual + 1.0


def _hardware(evidence: Evidence, again: Repetition) -> Finding:
    pairs = zip(evidence.owners, evidence.recorded.shares, again.shares, strict=True)
    apart = [(r, a, b) for r, a, b in pairs if not _close(a, b, evidence.tolerance)]
    ranks = tuple(sorted({rank for rank, _, _ in apart}))
    if apart:
        rank, was, now = apart[0]
        said = f"rank {rank} had a loss of {was:.6g} where the repetition has {now:.6g}"
        if len(ranks) == len(set(evidence.owners)) > 1:
            said = f"{said}, and so for all ranks: they held other weights than were saved"
        return Finding("hardware", f"it does not happen again: {said}", ranks=ranks)
    recorded = evidence.recorded.grad_norm
    said = f"the gradient norm was {recorded:.6g} where the repetition has {again.grad_norm:.6g}"
    why = f"it does not happen again: {said}, with the same losses: some rank's backward, or what "
    return Finding("hardware", f"{why}carried it to the others")


def _alike(a: Repetition, b: Repetition, tolerance: float) -> bool:
    shares = zip(a.shares, b.shares, strict=True)
    norm = _close(a.grad_norm, b.grad_norm, 5 * tolerance)
    return norm and _close(a.loss, b.loss, tolerance) and all(_close(*s, tolerance) for s in shares)


def _close(a: float, b: float, tolerance: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.isfinite(a) == math.isfinite(b)
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-6)


def _is_calmer(calm: Repetition, recorded: Repetition) -> bool:
    """Finite where it was not, or less than half of a spike."""
    if not recorded.is_finite:
        return calm.is_finite
    return calm.loss < recorded.loss / 2 or calm.grad_norm < recorded.grad_norm / 2
