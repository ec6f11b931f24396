"""What an evaluation leaves to look at: sums by length and class, pages in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.batch import IGNORED, ExampleBatch
from trainer.commands.figures import write_figures
from trainer.tasks.causal_lm import CausalLm
from trainer.tasks.classify import Classify
from trainer.tasks.extract_qa import ExtractQa
from trainer.tasks.lengths import LengthBucket
from trainer.tasks.relations import Relations
from trainer.tasks.tag import Tag

# Two rows of 40 places: examples of 3 and 32 tokens, then padding; one of 33.
LENGTHS = (3, 32, 33)
DOCUMENTS = torch.zeros(2, 40, dtype=torch.int64)
DOCUMENTS[0, :3], DOCUMENTS[0, 3:35], DOCUMENTS[1, :33] = 1, 2, 1
FIRST = torch.tensor([0, 3, 40])


class _Says(torch.nn.Module):
    """A model that gives the logits it was made of."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, fields: Mapping[str, torch.Tensor], *, want: str) -> torch.Tensor:
        return self._logits


def _batch(terms: int, **fields: torch.Tensor) -> ExampleBatch:
    given = {"documents_RT": DOCUMENTS, "first_E": FIRST, **fields}
    return ExampleBatch(given, (0, 1), terms, sum(LENGTHS))


def _one_class_each(chosen: list[int], classes: list[int]) -> dict[str, float]:
    logits = torch.nn.functional.one_hot(torch.tensor(chosen), 3).float()
    batch = _batch(3, classes_E=torch.tensor(classes), weights_E=torch.ones(3))
    return Classify("single", ("a", "b", "c")).score(_Says(logits), batch)


def test_classes_are_counted_by_the_length_of_their_example() -> None:
    task = Classify("single", ("a", "b", "c"))
    sums: dict[str, float] = {}
    for chosen in ([0, 1, 2], [0, 2, 2], [1, 1, 0]):  # sums add up over batches
        for name, value in _one_class_each(chosen, [0, 1, 2]).items():
            sums[name] = sums.get(name, 0.0) + value
    assert task.buckets(sums) == [
        LengthBucket(0, 16, 3, 2),
        LengthBucket(16, 32, 3, 2),
        LengthBucket(32, 64, 3, 2),
    ]
    assert "lengths[0]" not in task.values(sums)
    found = task.confusion(sums)
    assert found is not None
    assert found[0].counts(found[1]).tolist() == [[2, 1, 0], [0, 2, 1], [1, 0, 2]]


def test_padding_examples_are_in_no_bucket() -> None:
    logits = torch.zeros(1, 3)
    fields = {"first_E": torch.tensor([-1]), "documents_RT": torch.zeros(2, 8, dtype=torch.int64)}
    batch = _batch(0, **fields, classes_E=torch.tensor([0]), weights_E=torch.zeros(1))
    task = Classify("single", ("a", "b", "c"))
    sums = task.score(_Says(logits), batch)
    assert task.buckets(sums) == []


@pytest.mark.parametrize(("wrong", "right"), [(0, 1), (2, 0)])
def test_several_labels_are_right_together_or_not(wrong: int, right: int) -> None:
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    logits = targets * 2 - 1
    logits[0, :wrong] *= -1
    batch = _batch(3, targets_EC=targets, weights_E=torch.ones(3))
    task = Classify("multi", ("a", "b"))
    sums = task.score(_Says(logits), batch)
    assert task.buckets(sums)[0] == LengthBucket(0, 16, 1, right)
    assert task.confusion(sums) is None


def test_words_are_counted_by_the_length_of_their_sentence() -> None:
    labels = torch.full((2, 40), IGNORED)
    labels[0, 1], labels[0, 4:6], labels[1, 1:5] = 1, 0, 1
    logits = torch.nn.functional.one_hot(torch.ones(2, 40, dtype=torch.int64), 2).float()
    task = Tag(("N", "V"), "plain")
    sums = task.score(_Says(logits), _batch(7, labels_RT=labels))
    assert [(b.terms, b.right) for b in task.buckets(sums)] == [(1, 1), (2, 0), (4, 4)]
    found = task.confusion(sums)
    assert found is not None
    assert found[0].counts(found[1]).tolist() == [[0, 2], [0, 5]]
    assert Tag(("O", "B-X"), "bio").confusion(sums) is None


def _run(root: Path) -> Path:
    root.mkdir()
    (root / "run.json").write_text("{}")
    (root / "checkpoints/step-00000007").mkdir(parents=True)
    return root


@pytest.mark.parametrize("of", [".", "checkpoints/step-00000007"])
def test_figures_lie_in_the_run_by_step(of: str, tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    sums = _one_class_each([0, 2, 2], [0, 1, 2])
    task = Classify("single", ("a", "b", "c"))
    folder = write_figures(run / of, task, sums, step=7)
    assert folder == run / "figures/step-00000007"
    pages = {path.stem: path.read_text("utf-8") for path in folder.glob("*.html")}
    assert sorted(pages) == ["calibration", "confusion", "lengths"]
    assert "17 to 32" in pages["lengths"]
    assert "0.0000" in pages["lengths"]
    assert "<td>a</td>" in pages["confusion"]


def test_nothing_is_written_where_there_is_no_run_or_nothing_to_show(tmp_path: Path) -> None:
    sums: Any = _one_class_each([0, 1, 2], [0, 1, 2])
    exported = tmp_path / "export"
    exported.mkdir()
    assert write_figures(exported, Classify("single", ("a", "b", "c")), sums, step=7) is None
    assert list(exported.iterdir()) == []
    run = _run(tmp_path / "run")
    assert write_figures(run, CausalLm(), {"terms": 3.0, "loss": 1.0}, step=7) is None
    nothing = dict.fromkeys(sums, np.float64(0))
    assert write_figures(run, Classify("single", ("a", "b", "c")), nothing, step=7) is None
    assert not (run / "figures").exists()


def test_a_disk_that_takes_no_figures_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run")
    (run / "figures").write_text("a file where a folder has to be")
    sums = _one_class_each([0, 1, 2], [0, 1, 2])
    assert write_figures(run, Classify("single", ("a", "b", "c")), sums, step=7) is None
    assert "figures could not be written" in capsys.readouterr().err


def test_how_sure_a_class_was_is_held_against_whether_it_was_right(tmp_path: Path) -> None:
    """Two of 90 % (one right), one of 60 % (right), one of no weight: by hand, Guo et al. eq. 3."""
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]]).log()
    fields = {
        "classes_E": torch.tensor([0, 0, 0, 1]), "weights_E": torch.tensor([1.0, 1, 1, 0]),
        "first_E": torch.tensor([0, 3, 40, -1]),
    }  # fmt: skip
    tasks = {
        "classify": Classify("single", ("a", "b")),
        "relations": Relations(("a", "b"), none=None, symmetric=()),
    }
    for name, task in tasks.items():
        sums = task.score(_Says(logits), _batch(3, **fields))
        expected = (2 * abs(0.9 - 0.5) + abs(0.6 - 1)) / 3
        assert task.values(sums)["calibration_error"] == pytest.approx(expected, abs=1e-6)
        run = _run(tmp_path / name)
        folder = write_figures(run, task, sums, step=7)
        assert folder is not None
        page = (folder / "calibration.html").read_text("utf-8")
        assert "<td>0.5000</td>" in page  # of two answers that were 90 % sure, one was right
    assert Classify("multi", ("a", "b")).calibration(sums) is None


def test_an_answer_in_a_text_is_as_sure_as_its_start_and_its_end() -> None:
    """One question in one window of five tokens, three of them its context."""
    starts = torch.tensor([[0.1, 0.1, 0.6, 0.1, 0.1]]).log()
    ends = torch.tensor([[0.2, 0.1, 0.1, 0.5, 0.1]]).log()
    places = torch.tensor([[-1, -1, 0, 2, 4]])
    fields = {
        "first_E": torch.tensor([0]), "documents_RT": torch.ones(1, 5, dtype=torch.int64),
        "begins_RT": places, "ends_RT": torch.tensor([[-1, -1, 1, 3, 5]]),
        "spans_EC": torch.tensor([[2, 3]]), "weights_E": torch.ones(1),
    }  # fmt: skip
    said = {"record": "r", "window": 0, "windows": 1, "context": "a b c", "answers": ["b c"]}
    batch = ExampleBatch(fields, (0,), 1, 5, (said,))
    task = ExtractQa(answer_tokens=3, no_answer=True, threshold=0.0)

    class Says(torch.nn.Module):
        def forward(self, fields: Any, *, want: str) -> tuple[torch.Tensor, torch.Tensor]:
            return starts, ends

    sums, parts = task.score_parts(Says(), batch)
    for none, sure, right in ((0.0, 0.6 * 0.5, 0.0), (1.0, 0.1 * 0.2, 0.0)):
        least = parts[0].score + none
        best = [replace(parts[0], least=least)]
        values = task.values(sums | task.sums_of_best(best, left_out=0))
        # "a b" was said, or nothing: wrong both times
        assert values["calibration_error"] == pytest.approx(sure - right, abs=1e-6)
