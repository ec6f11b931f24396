"""Scores of classes, labels, numbers and entities: against other programs' formulas, and merged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.batch import IGNORED
from trainer.errors import DataError, Refused
from trainer.evals.metrics.base import Running, named, taken
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.confusion import Confusion, MultiLabel
from trainer.evals.metrics.correlation import Column, Pearson, Spearman
from trainer.evals.metrics.entities import EntityF1, entity_types
from trainer.evals.metrics.relations import Relation, RelationF1

SEQEVAL = Path(__file__).parents[1] / "golden" / "expected" / "seqeval.json"
ABC = ("a", "b", "c")


def drawn(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_classes_by_hand() -> None:
    """Actual a a a b b c; said a a b b c c. F1: a 4/5, b 1/2, c 2/3."""
    metric = Confusion(ABC)
    sums = metric.sums_of([0, 0, 1, 1, 2, 2, 9], [0, 0, 0, 1, 1, 2, IGNORED])
    assert metric.counts(sums).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    values = metric.value(sums)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert values["micro_f1"] == pytest.approx(4 / 6)
    # Gorodkin: (4 * 6 - (3*2 + 2*2 + 1*2)) / sqrt((36 - 12) (36 - 14))
    assert values["matthews"] == pytest.approx((24 - 12) / math.sqrt(24 * 22))
    assert [(row.label, row.examples, row.predicted) for row in metric.table(sums)] == [
        ("a", 3, 2), ("b", 2, 2), ("c", 1, 2)
    ]  # fmt: skip


def test_two_classes_have_the_matthews_of_1975() -> None:
    generator = drawn()
    actual = generator.integers(2, size=200)
    said = np.where(generator.random(200) < 0.7, actual, 1 - actual)
    tp, tn = (said & actual).sum(), ((1 - said) & (1 - actual)).sum()
    fp, fn = (said & (1 - actual)).sum(), ((1 - said) & actual).sum()
    expected = (tp * tn - fp * fn) / math.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    metric = Confusion(("no", "yes"))
    assert metric.value(metric.sums_of(said, actual))["matthews"] == pytest.approx(expected)
    # It is the correlation of the two columns, too.
    assert expected == pytest.approx(np.corrcoef(said, actual)[0, 1])


def test_constant_answers_have_no_correlation_and_nothing_has_no_score() -> None:
    metric = Confusion(ABC)
    assert metric.value(metric.sums_of([0, 0], [0, 1]))["matthews"] == 0.0
    assert all(math.isnan(value) for value in Running(metric).value().values())


def test_a_class_left_out_still_costs_those_it_was_taken_for() -> None:
    """no_relation x 2 (one taken for a), a x 2 (one taken for no_relation): P = R = 1/2."""
    metric = Confusion(("no_relation", "a"), left_out=frozenset({"no_relation"}))
    values = metric.value(metric.sums_of([0, 1, 1, 0], [0, 0, 1, 1]))
    assert values["micro_f1"] == values["macro_f1"] == 0.5


def test_a_declared_class_that_never_occurs_is_no_zero() -> None:
    metric = Confusion(ABC)
    assert metric.value(metric.sums_of([0, 1], [0, 1]))["macro_f1"] == 1.0


def test_labels_by_hand() -> None:
    metric = MultiLabel(ABC)
    sums = metric.sums_of(
        [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
        [[1, 0, 0], [1, 0, 1], [0, 1, 0]],
    )
    values = metric.value(sums)
    assert values == pytest.approx(
        {"accuracy": 1 / 3, "macro_f1": 1 / 3, "micro_f1": 2 * 2 / (3 + 4), "hamming_loss": 3 / 9}
    )
    assert metric.table(sums)[0].f1 == 1.0
    assert math.isnan(Running(metric).value()["macro_f1"])


def test_correlations_are_numpys_and_ties_share_their_ranks() -> None:
    generator = drawn()
    x = generator.normal(3.0, 1.0, 300)
    y = np.round(x + generator.normal(0.0, 1.0, 300))  # many ties
    values = Pearson().value(Pearson().sums_of(x, y))
    assert values["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert values["mean_squared_error"] == pytest.approx(((x - y) ** 2).mean())
    assert values["mean_absolute_error"] == pytest.approx(np.abs(x - y).mean())
    ranks = [[(v < one).sum() + ((v == one).sum() - 1) / 2 for one in v] for v in (x, y)]
    metric = Spearman(400)  # 100 rows were padding
    sums = metric.sums_of(Column(np.arange(300) + 50, x), y)
    assert metric.value(sums)["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


def test_far_from_zero_a_centre_keeps_the_digits() -> None:
    x = drawn().normal(0.0, 1.0, 100)
    y = x + drawn(1).normal(0.0, 1.0, 100)
    metric = Pearson(centre=1e6)
    found = metric.value(metric.sums_of(x + 1e6, y + 1e6))["pearson"]
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-8)


def test_numbers_that_do_not_vary_have_no_correlation() -> None:
    metric = Pearson()
    assert math.isnan(metric.value(metric.sums_of([1.0, 1.0], [1.0, 2.0]))["pearson"])
    assert math.isnan(Running(Spearman(4)).value()["spearman"])


def test_too_many_rows_for_ranks_are_refused() -> None:
    with pytest.raises(Refused, match="1,000,001 rows are more than the 1,000,000"):
        Spearman(1_000_001)


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_entities_are_seqevals(mode: Any) -> None:
    for case in json.loads(SEQEVAL.read_text("utf-8"))["cases"]:
        running = Running(EntityF1(("LOC", "PER", "_"), mode=mode, scheme=case["scheme"]))
        for said, actual in zip(case["predicted"], case["reference"], strict=True):
            running.add(said.split(), actual.split())
        assert list(running.value().values()) == pytest.approx(
            case[mode], abs=1e-12, nan_ok=True
        ), case


def test_the_two_readings_of_tags_differ_where_they_should() -> None:
    tags = ["I-PER", "O", "B-LOC", "I-PER"]
    assert EntityF1(("LOC", "PER")).entities(tags) == [
        ("PER", 0, 1), ("LOC", 2, 3), ("PER", 3, 4)
    ]  # fmt: skip
    assert EntityF1(("LOC", "PER"), mode="strict").entities(tags) == [("LOC", 2, 3)]
    unfinished = EntityF1(("PER",), mode="strict", scheme="bioes")
    assert unfinished.entities(["B-PER", "I-PER", "O", "S-PER"]) == [("PER", 3, 4)]


def test_types_come_from_the_declared_tags() -> None:
    assert entity_types(["O", "B-PER", "I-PER", "B-x-y", "B"]) == ("PER", "_", "x-y")
    with pytest.raises(Refused, match="the tag 'E-PER' is not of BIO: tags look like"):
        entity_types(["O", "E-PER"])
    assert entity_types(["O", "E-PER"], "bioes") == ("PER",)


def test_the_wrong_way_round_is_half_right() -> None:
    metric = RelationF1(("cause", "friend"), symmetric=frozenset({"friend"}))
    said = [Relation("cause", 2, 1), Relation("friend", 4, 3), Relation("cause", 5, 6)]
    actual = [Relation("cause", 1, 2), Relation("friend", 3, 4), Relation("cause", 5, 6)]
    values = metric.value(metric.sums_of(said, actual))
    assert values["relation_f1"] == pytest.approx(2 / 3)
    assert values["relation_f1_any_direction"] == 1.0
    assert values["relation_macro_f1"] == pytest.approx((1 / 2 + 1) / 2)
    with pytest.raises(DataError, match="'foe' is none of those declared"):
        metric.sums_of([Relation("foe", 1, 2)], [])


def test_relations_of_another_type_or_place_are_not_found() -> None:
    metric = RelationF1(("cause", "part"))
    values = metric.value(
        metric.sums_of(
            [Relation("part", 1, 2), Relation("cause", 1, 3)],
            [Relation("cause", 1, 2)],
        )
    )
    assert values["relation_f1"] == values["relation_f1_any_direction"] == 0.0


def test_calibration_by_hand() -> None:
    """Two bins: (0, .5] has 0.4 and 0.5, one right; (.5, 1] has 0.8, 1.0, 0.6, two right."""
    metric = Calibration(bins=2)
    sums = metric.sums_of([0.4, 0.5, 0.8, 1.0, 0.6], [True, False, True, True, False])
    values = metric.value(sums)
    assert values["calibration_error"] == pytest.approx((abs(0.9 - 1) + abs(2.4 - 2)) / 5)
    assert values["max_calibration_error"] == pytest.approx(0.4 / 3)
    low, high = metric.diagram(sums)
    assert (low.answers, low.accuracy, high.answers) == (2, 0.5, 3)
    assert high.confidence == pytest.approx(0.8)
    assert math.isnan(Calibration().diagram(Running(Calibration()).sums)[3].accuracy)


def test_three_parts_are_the_whole_in_any_order() -> None:
    """Also through dicts of floats, as tasks hand their sums on."""
    generator = drawn(5)
    classes, said = generator.integers(3, size=(2, 90))
    numbers, given = generator.normal(size=(2, 90))
    several = generator.random((2, 90, 3)) < 0.5
    tags = [f"{p}{t}" for p, t in zip(generator.choice(["B-", "I-"], 90), "abc" * 30, strict=True)]
    rows = np.arange(90)

    def entities(part: slice) -> np.ndarray:
        metric = EntityF1(ABC)
        return sum(
            metric.sums_of(tags[r : r + 3], tags[r + 1 : r + 4]) for r in rows[part] if r < 84
        )

    def check(metric: Any, of: Any) -> None:
        whole = metric.value(of(slice(None)))
        parts = [of(slice(60, 90)), of(slice(0, 25)), of(slice(25, 60))]
        floats = [named("m", part) for part in parts]
        added = {key: sum(one[key] for one in floats) for key in floats[0]}
        assert metric.value(taken("m", metric.size, added)) == pytest.approx(whole, abs=1e-12)
        assert all(part.shape == (metric.size,) for part in parts)

    check(Confusion(ABC), lambda p: Confusion(ABC).sums_of(said[p], classes[p]))
    check(MultiLabel(ABC), lambda p: MultiLabel(ABC).sums_of(several[0][p], several[1][p]))
    check(Pearson(), lambda p: Pearson().sums_of(numbers[p], given[p]))
    check(Spearman(90), lambda p: Spearman(90).sums_of(Column(rows[p], numbers[p]), given[p]))
    check(EntityF1(ABC), entities)
    check(Calibration(), lambda p: Calibration().sums_of(np.abs(np.tanh(numbers[p])), said[p] == 1))
