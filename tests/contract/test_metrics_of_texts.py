"""Scores of texts: equal to the libraries', by the published rules, and merged from parts."""

from __future__ import annotations

import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import DataError, Refused
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.bits_per_byte import BitsPerByte
from trainer.evals.metrics.confusion import Confusion
from trainer.evals.metrics.exact_match import ExactMatch
from trainer.evals.metrics.grouped import Grouped, In, length_group, length_groups
from trainer.evals.metrics.rouge import Rouge
from trainer.evals.metrics.squad import Squad, normalised
from trainer.evals.metrics.translation import Bleu, Chrf

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def parts_of(metric: Any, said: list[Any], given: list[Any]) -> tuple[dict[str, float], ...]:
    """The value of the whole, and of three uneven parts added up in another order."""
    runs = [Running(metric) for _ in range(4)]
    for index, (one, references) in enumerate(zip(said, given, strict=True)):
        runs[0].add(one, references)
        runs[1 + (index > 4) + (index > 30)].add(one, references)
    return runs[0].value(), metric.value(runs[3].sums + runs[1].sums + runs[2].sums)


@pytest.mark.parametrize(
    ("metric", "library", "said"),
    [
        (Bleu(), "sacrebleu", "BLEU and chrF need sacrebleu: pip install 'longhaul"),
        (Chrf(), "sacrebleu", "BLEU and chrF need sacrebleu: pip install 'longhaul"),
        (Rouge(), "rouge_score", "ROUGE needs rouge-score: pip install 'longhaul"),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, metric: Any, library: str, said: str
) -> None:
    for name in [library, *(name for name in sys.modules if name.startswith(library + "."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Refused, match=said):
        metric.sums_of("a", ["a"])
    extras = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(one.replace("-", "_").startswith(library) for one in extras["eval"])


@pytest.mark.parametrize(
    ("said", "given", "exact", "overlap"),
    [
        # Articles, case, punctuation and spaces do not count ...
        ("The  Eiffel Tower.", ["eiffel tower"], 1, 1),
        # ... but a hyphen is taken out, not made a space, and "A" in a name is an article.
        ("twenty-one", ["twenty one"], 0, 0),
        ("A. Turing", ["turing"], 1, 1),
        ("theatre", ["atre"], 0, 0),  # an article is a word
        # Two of three words said, two of four given: 2 * 2 / (3 + 4).
        ("big red dog", ["red dog of Clifford"], 0, 4 / 7),
        # A word counts as often as it is in both: 2 * 2 / (3 + 2).
        ("no no no", ["no no"], 0, 4 / 5),
        # The best of the given answers, for each of the two by itself.
        ("in 1990", ["1990", "1991", "in the year 1990"], 0, 2 * 2 / (2 + 3)),
        # No answer is all or nothing.
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
    ],
)
def test_squads_rules(said: str, given: list[str], exact: float, overlap: float) -> None:
    values = Squad().value(Squad().sums_of(said, given))
    assert (values["exact_match"], values["f1"]) == (exact, pytest.approx(overlap))


def test_versions_differ_for_an_answer_that_is_only_an_article() -> None:
    """1.1 asks for a common word, and there is none; 2.0 drops such an answer where there is
    another, and takes it for no answer where there is not."""
    for given, old, new in ([["The"], (1, 0), (1, 1)], [["The", "cat"], (1, 0), (0, 0)]):
        for version, (exact, overlap) in (("1.1", old), ("2.0", new)):
            metric = Squad(version=version)
            values = metric.value(metric.sums_of("", given))
            assert (values["exact_match"], values["f1"]) == (exact, overlap), (given, version)


def test_questions_with_and_without_an_answer_are_told_apart() -> None:
    said = ["paris", "the red dog", "", "rome"]
    given = [["Paris"], ["red cat"], [], []]
    whole, merged = parts_of(Squad(), said, given)
    assert whole == pytest.approx(
        {"exact_match": 0.5, "f1": 2.5 / 4, "has_answer_exact_match": 0.5, "has_answer_f1": 0.75,
         "no_answer_accuracy": 0.5}
    )  # fmt: skip
    assert merged == whole
    assert set(parts_of(Squad(), said[:2], given[:2])[0]) == {"exact_match", "f1"}


def test_order_of_normalisation() -> None:
    """Punctuation goes first: "a-n" becomes the article "an", "(the)" is one."""
    assert normalised("A-N  apple\tand (the)\npear's") == "apple and pears"


@pytest.mark.parametrize(("ignoring", "right"), [("nothing", 1), ("spaces", 2), ("squad", 3)])
def test_what_an_exact_match_ignores(ignoring: Any, right: int) -> None:
    said = ["42", " 42\n", "The 42.", "41"]
    whole, merged = parts_of(ExactMatch(ignoring), said, [["42", "42 "]] * 4)
    assert whole == merged == {"exact_match": right / 4}


def test_bits_per_byte() -> None:
    running = Running(BitsPerByte())
    assert math.isnan(running.value()["bits_per_byte"])
    running.add(3 * math.log(2), len("für".encode()))
    running.add(math.log(2), 4)
    assert running.value() == {"bits_per_byte": pytest.approx(4 / 8)}


def test_lengths_fall_into_named_groups() -> None:
    edges = (64, 256)
    assert length_groups(edges) == ("1-63", "64-255", "256+")
    found = [length_group(length, edges) for length in (1, 63, 64, 255, 256, 9999)]
    assert found == ["1-63", "1-63", "64-255", "64-255", "256+", "256+"]


def test_each_group_has_its_scores_and_the_gap_is_told() -> None:
    metric = Grouped(Confusion(("no", "yes")), ("x", "y", "never"))
    rows = [In("x", [1]), In("y", [1]), In("x", [0]), In("y", [1])]
    whole, merged = parts_of(metric, rows, [[1], [0], [0], [1]])
    assert whole["x/accuracy"] == 1.0
    assert whole["y/accuracy"] == whole["gap/accuracy"] == 0.5
    assert not [name for name in whole if name.startswith("never")]
    assert merged == whole
    with pytest.raises(DataError, match="the group 'z' is none of x, y, never"):
        metric.sums_of(In("z", [1]), [1])
