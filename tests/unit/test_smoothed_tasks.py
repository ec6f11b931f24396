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
