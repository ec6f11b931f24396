"""Labels are smoothed in the loss that is trained on, as PyTorch does it, and never in scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.configs import config
from trainer.batch import IGNORED, ExampleBatch
from trainer.config.explain import validate
from trainer.records.example_lookup import example_keys
from trainer.tasks.base import Task
from trainer.tasks.classify import Classify
from trainer.tasks.extract_qa import ExtractQa
from trainer.tasks.relations import Relations
from trainer.tasks.tag import Tag

LABELS = ("a", "b", "c")


class Says(torch.nn.Module):
    """A model that has one answer."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, fields: dict[str, torch.Tensor], *, want: str) -> torch.Tensor:
        return self.logits


def _batch(**fields: torch.Tensor) -> ExampleBatch:
    whole = {"documents_RT": torch.ones(1, 4, dtype=torch.int64), "first_E": torch.zeros(4).long()}
    return ExampleBatch(whole | fields, (0,), 4, 4)


TASKS: dict[str, Any] = {
    "classify": lambda s: Classify("single", LABELS, label_smoothing=s),
    "relations": lambda s: Relations(LABELS, none=None, symmetric=(), label_smoothing=s),
    "tag": lambda s: Tag(LABELS, "plain", label_smoothing=s),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_smooths_what_it_trains_on_alone(name: str) -> None:
    torch.manual_seed(3)
    logits, classes = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    if name == "tag":
        labels = torch.tensor([[0, 2, IGNORED, 1]])
        model, batch = Says(logits[None]), _batch(labels_RT=labels)
        classes = labels[0]
    else:
        model, batch = Says(logits), _batch(classes_E=classes, weights_E=torch.ones(4))

    def expected(smoothing: float) -> float:
        return F.cross_entropy(
            logits.double(), classes, reduction="sum", label_smoothing=smoothing
        ).item()

    task: Task = TASKS[name](0.2)
    assert task.loss_sum(model, batch).item() == pytest.approx(expected(0.2), rel=1e-6)
    assert task.score(model, batch)["loss"] == pytest.approx(expected(0.0), rel=1e-6)
    assert expected(0.2) != pytest.approx(expected(0.0), rel=1e-3)


def test_places_of_an_answer_are_smoothed_over_their_own_window() -> None:
    """Two windows packed into a row, one of five places and one of three, and padding."""
    torch.manual_seed(4)
    starts, ends = torch.randn(1, 9), torch.randn(1, 9)
    fields = {
        "documents_RT": torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 0]]),
        "first_E": torch.tensor([0, 5, -1]),
        "spans_EC": torch.tensor([[1, 3], [0, 0], [0, 0]]),
        "weights_E": torch.tensor([1.0, 1.0, 0.0]),
    }
    batch = ExampleBatch(fields, (0,), 2, 8)
    model = Says((starts, ends))  # type: ignore[arg-type]

    def expected(smoothing: float) -> float:
        total = 0.0
        for logits, places in ((starts, (1, 0)), (ends, (3, 0))):
            for window, place in zip((slice(0, 5), slice(5, 8)), places, strict=True):
                alone, right = logits[:, window].double(), torch.tensor([place])
                total += F.cross_entropy(alone, right, label_smoothing=smoothing).item() / 2
        return total

    def task(smoothing: float) -> ExtractQa:
        given = {"answer_tokens": 4, "no_answer": True, "threshold": 0.0}
        return ExtractQa(**given, label_smoothing=smoothing)  # type: ignore[arg-type]

    assert task(0.2).loss_sum(model, batch).item() == pytest.approx(expected(0.2), rel=1e-6)
    assert task(0.0).loss_sum(model, batch).item() == pytest.approx(expected(0.0), rel=1e-6)
    assert task(0.2).score(model, batch)["loss"] == pytest.approx(expected(0.0), rel=1e-6)
    assert expected(0.2) != pytest.approx(expected(0.0), rel=1e-3)


def test_what_only_changes_a_loss_makes_no_other_store(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,y\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    given = (
        "task=classify", "model=encoder_debug", "data=examples",
        f"data.sources.examples.paths=[{tmp_path / 'a.csv'}]",
        f"data.tokenizer.path={tmp_path}",
    )  # fmt: skip

    def keys(*more: str) -> dict[str, str]:
        values = config(*given, *more).model_dump(mode="json")
        return example_keys(validate(values).data.model_dump(mode="json"), values["task"]).stores

    assert keys("task.label_smoothing=0.1") == keys()
    assert keys("task.answers=multi") != keys()
