"""A word list finds spellings; integrated gradients share a score out among tokens."""

from __future__ import annotations

import pytest
import torch

from trainer.errors import Refused
from trainer.evals.attribution import integrated_gradients, integrated_gradients_of_captum
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.word_list import WordList

LIST = WordList((("rude", ("darn", "go away")), ("numbers", (r"re:\b\d{4}-\d{4}\b", "pin"))))


def test_words_are_found_whole_and_in_any_case() -> None:
    texts = ["Darn it.", "darning socks", "please GO AWAY!", "my PIN: 1234-5678", "spin 12345-678"]
    running = Running(LIST)
    for text in texts:
        running.add(text, None)
    assert running.value() == {
        "flagged": 3 / 5, "flagged/rude": 2 / 5, "flagged/numbers": 1 / 5
    }  # fmt: skip
    assert LIST.found(texts[3], "numbers") == ["PIN", "1234-5678"]


def test_an_expression_that_is_none_is_refused() -> None:
    with pytest.raises(Refused, match=r"'re:\(' under rude: no regular expression"):
        WordList((("rude", ("re:(",)),))


def test_a_linear_score_is_shared_out_exactly() -> None:
    weights = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-3.0, 1.0]])
    embeddings = torch.tensor([[1.0, 1.0], [9.0, 9.0], [1.0, 0.0]])
    found = integrated_gradients(
        lambda x: (x * weights).sum((1, 2)), embeddings, baseline_TH=torch.zeros(3, 2), points=3
    )
    assert found.shares_T.tolist() == pytest.approx([3.0, 0.0, -3.0])
    assert (found.difference, found.gap) == (pytest.approx(0.0), pytest.approx(0.0))


def test_shares_add_up_to_the_difference() -> None:
    """The axiom of completeness, for a small network; more points come closer."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    embeddings, baseline = torch.randn(6, 4) * 2, torch.randn(6, 4)

    def score(x: torch.Tensor) -> torch.Tensor:
        return network(x)[..., 0].square().sum(1)

    gaps = [
        integrated_gradients(score, embeddings, baseline_TH=baseline, points=points)
        for points in (2, 20, 100)
    ]
    assert abs(gaps[0].gap) > 10 * abs(gaps[1].gap) > 50 * abs(gaps[2].gap)
    assert abs(gaps[2].gap) < 1e-3
    # Each position has a score of its own here: its share is its own difference.
    own = [score(embeddings[None, t : t + 1]) - score(baseline[None, t : t + 1]) for t in range(6)]
    assert gaps[2].shares_T.tolist() == pytest.approx([x.item() for x in own], rel=5e-3, abs=5e-3)


def test_captum_shares_a_score_out_alike() -> None:
    """Two programs by two authors, on a network with a kink."""
    pytest.importorskip("captum", reason="comes with the extra `explain`")
    torch.manual_seed(2)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    embeddings, baseline = torch.randn(5, 4) * 2, torch.randn(5, 4)

    def score(x: torch.Tensor) -> torch.Tensor:
        return network(x)[..., 0].square().sum(1)

    ours, theirs = (
        attribute(score, embeddings, baseline_TH=baseline, points=30)
        for attribute in (integrated_gradients, integrated_gradients_of_captum)
    )
    assert theirs.shares_T.tolist() == pytest.approx(ours.shares_T.tolist(), rel=1e-5, abs=1e-6)
    assert theirs.difference == ours.difference
    assert theirs.gap == pytest.approx(ours.gap, rel=1e-3, abs=1e-5)


def test_points_at_once_do_not_change_the_result() -> None:
    embeddings = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))

    def shares(at_once: int) -> torch.Tensor:
        return integrated_gradients(
            lambda x: x.pow(3).sum((1, 2)), embeddings, baseline_TH=torch.zeros(3, 2),
            points=10, at_once=at_once,
        ).shares_T  # fmt: skip

    torch.testing.assert_close(shares(1), shares(7))
