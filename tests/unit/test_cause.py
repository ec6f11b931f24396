"""Which cause follows from which numbers: every branch, without a model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trainer.verify.cause import Evidence, Repetition, RowLoss, cause_of

NAN, INF = math.nan, math.inf
USUAL = 3.0


def _step(loss: float, norm: float = 1.0, shares: tuple[float, ...] = ()) -> Repetition:
    return Repetition(loss, norm, shares or (loss / 4,) * 4)


def _evidence(recorded: Repetition, again: Repetition, *, far: int = 0) -> Evidence:
    rows = [RowLoss(s, 30.0 if s < far else 3.1) for s in range(8)]
    return Evidence(recorded, [0, 1, 0, 1], [again, again], again, rows, USUAL, 1e-2)


def test_other_numbers_are_hardware_and_name_the_rank() -> None:
    bad = Repetition(NAN, 1.0, (1.0, 1.0, 1.0, NAN))
    found = cause_of(_evidence(bad, _step(4.0)))
    assert (found.cause, found.ranks) == ("hardware", (1,))
    assert "rank 1 had a loss of nan where the repetition has 1" in found.why


def test_the_same_losses_with_another_norm_are_hardware_of_nobody_in_particular() -> None:
    found = cause_of(_evidence(_step(4.0, INF), _step(4.0, 1.0)))
    assert (found.cause, found.ranks) == ("hardware", ())
    assert "the gradient norm was inf" in found.why


def test_all_ranks_off_is_the_state() -> None:
    found = cause_of(_evidence(_step(9.0), _step(4.0)))
    assert (found.cause, found.ranks) == ("hardware", (0, 1))
    assert "they held other weights than were saved" in found.why


def test_two_answers_on_one_machine_are_its_own() -> None:
    evidence = _evidence(_step(9.0), _step(9.0))
    found = cause_of(replace(evidence, again=[_step(9.0), _step(9.5)]))
    assert found.cause == "hardware"
    assert "this machine gives another answer each time" in found.why


@pytest.mark.parametrize("far", [1, 8])
def test_rows_far_off_are_data(far: int) -> None:
    found = cause_of(_evidence(_step(9.0), _step(9.0), far=far))
    assert found.cause == "data"
    assert [row.sample for row in found.rows] == list(range(far))


def test_what_fp32_does_not_do_is_numeric_even_if_rows_stand_out() -> None:
    evidence = _evidence(_step(NAN, INF), _step(NAN, INF), far=2)
    found = cause_of(replace(evidence, in_fp32=_step(3.0)))
    assert found.cause == "numeric"
    assert "not in fp32" in found.why


def test_no_row_stands_out_is_numeric() -> None:
    found = cause_of(_evidence(_step(3.2, 900.0), _step(3.2, 900.0)))
    assert found.cause == "numeric"
    assert "no row stands out" in found.why


def test_nothing_is_finite_is_the_weights() -> None:
    evidence = _evidence(_step(NAN, NAN), _step(NAN, INF), far=8)
    found = cause_of(replace(evidence, usual=NAN))
    assert found.cause == "numeric"
    assert "the weights have gone wrong" in found.why


def test_all_rows_far_off_with_none_to_compare_are_not_called_data() -> None:
    evidence = _evidence(_step(NAN, INF), _step(NAN, INF), far=8)
    found = cause_of(replace(evidence, usual_was=True))
    assert (found.cause, found.rows) == ("numeric", ())
    assert "all are far off, and none are held out to tell whether others are too" in found.why
    some = cause_of(replace(_evidence(_step(9.0), _step(9.0), far=2), usual_was=True))
    assert (some.cause, len(some.rows)) == ("data", 2)
    assert "2 of 8 rows are far off; the steps before had a loss of 3.0" in some.why


def test_rounding_in_another_order_is_the_same() -> None:
    evidence = _evidence(_step(9.0), _step(9.0 * 1.005, 1.03), far=1)
    assert cause_of(evidence).cause == "data"
