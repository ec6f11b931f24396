"""BLEU, chrF and ROUGE from sums that add are what their libraries say of the whole corpus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer.evals.metrics.base import Running
from trainer.evals.metrics.rouge import Rouge
from trainer.evals.metrics.translation import Bleu, Chrf

WORDS = [*("the", "a", "Cat", "sat,", "on", "mat.", "and", "(dogs)", "run;", "don't", "stop"),
         *("3.14", "of", "10%", "-", "it's", "Haus")]  # fmt: skip

EXTRA = "the extra `eval` is not installed: pip install longhaul[eval]"


def texts(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Answers, and two references for each: its words, some of them changed."""
    generator = np.random.default_rng(seed)

    def changed(words: list[str]) -> str:
        kept = [w for w in words if generator.random() < 0.9]
        return " ".join(
            str(generator.choice(WORDS)) if generator.random() < 0.3 else w for w in kept
        )

    said = [
        [str(w) for w in generator.choice(WORDS, generator.integers(1, 25))] for _ in range(count)
    ]
    return [" ".join(words) for words in said], [[changed(w), changed(w)] for w in said]


def parts_of(metric: Any, said: list[Any], given: list[Any]) -> tuple[dict[str, float], ...]:
    """The value of the whole, and of three uneven parts added up in another order."""
    runs = [Running(metric) for _ in range(4)]
    for index, (one, references) in enumerate(zip(said, given, strict=True)):
        runs[0].add(one, references)
        runs[1 + (index > 4) + (index > 30)].add(one, references)
    return runs[0].value(), metric.value(runs[3].sums + runs[1].sums + runs[2].sums)


@pytest.mark.parametrize("tokenize", [None, "intl", "char", "zh", "none"])
def test_bleu_is_sacrebleus(tokenize: str | None) -> None:
    library = pytest.importorskip("sacrebleu.metrics", reason=EXTRA)
    said, given = texts(40)
    said[3], said[4] = "", "The cat sat on the mat ."
    whole, merged = parts_of(Bleu(tokenize=tokenize), said, given)
    columns = [list(column) for column in zip(*given, strict=True)]
    expected = library.BLEU(tokenize=tokenize).corpus_score(said, columns).score
    assert 10 < expected < 90
    assert abs(whole["bleu"] - expected) < 1e-9
    assert merged == whole


def test_lower_case_and_few_ngrams_are_sacrebleus_too() -> None:
    library = pytest.importorskip("sacrebleu.metrics", reason=EXTRA)
    said, given = ["Ein Haus", "der Hund"], [["ein haus"], ["Der hund bellt"]]
    columns = [["ein haus", "Der hund bellt"]]
    for settings in ({}, {"lowercase": True}):
        whole, _ = parts_of(Bleu(**settings), said, given)
        expected = library.BLEU(**settings).corpus_score(said, columns).score
        assert abs(whole["bleu"] - expected) < 1e-9


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus(word_order: int) -> None:
    library = pytest.importorskip("sacrebleu.metrics", reason=EXTRA)
    said, given = texts(40)
    whole, merged = parts_of(Chrf(word_order=word_order), said, given)
    columns = [list(column) for column in zip(*given, strict=True)]
    expected = library.CHRF(word_order=word_order).corpus_score(said, columns).score
    assert abs(whole["chrf" + "+" * word_order] - expected) < 1e-9
    assert merged == whole


def test_rouge_is_rouge_scores_mean() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason=EXTRA)
    said, given = texts(40)
    said = [text.replace(", ", "\n") for text in said]  # sentences are lines
    whole, merged = parts_of(Rouge(), said, given)
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    library = scorer.RougeScorer(kinds, use_stemmer=True)
    for kind in kinds:
        best = [
            max((library.score(one, text)[kind] for one in references), key=lambda s: s.fmeasure)
            for text, references in zip(said, given, strict=True)
        ]
        assert whole[kind] == pytest.approx(np.mean([s.fmeasure for s in best]), abs=1e-12)
        assert whole[f"{kind}_recall"] == pytest.approx(np.mean([s.recall for s in best]))
    assert whole["rougeL"] != whole["rougeLsum"]
    assert merged == pytest.approx(whole, abs=1e-12)
