"""Tokens that count for more or less than one: from the data to the loss, and never in scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers import task_cases
from tests.helpers.task_cases import CASES, Case, case_plan
from trainer.batch import IGNORED, ExampleBatch
from trainer.data.example_reader import ExampleReader
from trainer.data.example_store import ExampleStore
from trainer.data.row_shape import RowShape, StreamSource
from trainer.errors import DataError, Refused
from trainer.plan import RunPlan
from trainer.tasks.answers import Answers
from trainer.tasks.tag import Tag
from trainer.tasks.targets import Targets

TAGS = ["O", "B-PER", "I-PER", "O"]
WORDS = ["the", "Peter", "Blackburn", "house"]


def plan_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: list[dict[str, Any]], *more: str
) -> RunPlan:
    """Of the case `name` with rows of our own."""
    case = CASES[name]
    own = Case((*case.overrides, *more), lambda _, n: rows[n], case.model, case.tokenizer)
    monkeypatch.setitem(task_cases.CASES, "weighted", own)
    given = ["data.held_out_fraction=0", "evals.held_out_rows=0"]
    return case_plan(folder, "weighted", given, count=len(rows))


def batch_of(plan: RunPlan) -> ExampleBatch:
    """All rows."""
    store = ExampleStore.open(Path(plan.stores[0].path))
    rows = plan.stores[0].train_rows
    shape = RowShape(
        global_batch_size=rows,
        micro_batch_size=rows,
        sequence_length=plan.config.data.sequence_length,
        packing=plan.config.data.packing,
    )
    reader = ExampleReader([StreamSource("a", store, 1.0)], shape)
    every = np.arange(rows)
    (found,) = reader.batches("train", every * 0, every, samples=every, sizes=[rows])
    return found


class Says(torch.nn.Module):
    """A model with one answer, as an encoder and as a decoder are asked for it."""

    def __init__(self, logits_RTV: torch.Tensor) -> None:
        super().__init__()
        self.logits_RTV = logits_RTV

    def forward(self, *given: Any, want: str = "log_probs", **named: Any) -> Any:
        if want == "tokens":
            return self.logits_RTV
        labels = given[2] if len(given) == 3 else given[0]["labels_RS"]
        nats = torch.log_softmax(self.logits_RTV, -1).gather(-1, labels.clamp(min=0)[..., None])
        found = nats[..., 0].masked_fill(labels == IGNORED, 0.0)
        return (found, self.logits_RTV.argmax(-1) == labels) if want == "scores" else found


def weighted_mean(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """By PyTorch's own weights, which are of classes: a class for each label that counts."""
    places = (labels != IGNORED).nonzero(as_tuple=True)
    total = sum(
        w * F.cross_entropy(row[None].double(), label[None]).item()
        for row, label, w in zip(
            logits[places], labels[places], weights[places].tolist(), strict=True
        )
    )
    return float(total / weights.sum().item())


def test_words_count_as_the_data_says_and_tags_of_weight_0_are_not_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"tokens": WORDS, "tags": TAGS, "weights": [0.25, 2, 0, 1]},
        {"tokens": WORDS[:2], "tags": TAGS[:2]},
    ]
    plan = plan_of(tmp_path, monkeypatch, "tag", rows, "task.weighted=true")
    batch = batch_of(plan)
    labels, weights = batch.fields["labels_RT"], batch.fields["weights_RT"]
    assert sorted(weights[labels != IGNORED].tolist()) == [0.25, 1.0, 1.0, 1.0, 2.0]
    assert not weights[labels == IGNORED].any()
    assert batch.terms == 5.25
    torch.manual_seed(1)
    logits = torch.randn(*labels.shape, len(plan.stores[0].labels))
    task = Tag(plan.stores[0].labels, "bioes")
    loss = task.loss_sum(Says(logits), batch).item() / batch.terms
    assert loss == pytest.approx(weighted_mean(logits, labels, weights), rel=1e-6)
    scores = task.score(Says(logits), batch)
    alike = F.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum")
    assert (scores["terms"], scores["loss"]) == (5.0, pytest.approx(alike.item(), rel=1e-6))


def test_what_a_message_or_an_example_says_counts_as_it_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [("user", "a fault", None), ("assistant", "the house", 0.5), ("user", "its", None)]
    said += [("assistant", "an engine", None), ("user", "and", None), ("assistant", "Acme", 0)]
    messages = [
        {"role": role, "content": text} | ({} if weight is None else {"weight": weight})
        for role, text, weight in said
    ]
    chats = [{"messages": messages}] * 2
    pairs = [{"source": "a fault", "target": "the house", "weight": w} for w in (3, None, 0, 0.1)]
    for name, rows, expected in (
        ("chat", chats, {0.5, 1.0}),
        ("seq2seq", pairs, {3.0, 1.0, float(np.float32(0.1))}),
        ("seq2seq_t5", pairs, {3.0, 1.0, float(np.float32(0.1))}),
    ):
        plan = plan_of(tmp_path / name, monkeypatch, name, rows, "task.weighted=true")
        batch = batch_of(plan)
        axis = "RS" if name == "seq2seq_t5" else "RT"
        labels, weights = batch.fields[f"labels_{axis}"], batch.fields[f"weights_{axis}"]
        assert set(weights[labels != IGNORED].tolist()) == expected, name
        assert not weights[labels == IGNORED].any()
        assert batch.terms == weights.double().sum().item()
        torch.manual_seed(2)
        logits = torch.randn(*labels.shape, plan.vocab_size)
        task = Targets() if axis == "RS" else Answers()
        loss = task.loss_sum(Says(logits), batch).item() / batch.terms
        assert loss == pytest.approx(weighted_mean(logits, labels, weights), rel=1e-6)
        assert task.score(Says(logits), batch)["terms"] == int((labels != IGNORED).sum())


@pytest.mark.parametrize(
    ("name", "row", "more", "said"),
    [
        ("tag", {"weights": [1, 2]}, ["task.weighted=true"], "4 tokens and 2 weights"),
        (
            "tag",
            {"weights": [1, 2, -1, 0]},
            ["task.weighted=true"],
            "row 1, token 3: its weight is",
        ),
        (
            "seq2seq",
            {"weight": "much"},
            ["task.weighted=true"],
            "its weight is 'much', not a number",
        ),
        ("seq2seq", {"weight": 1e9}, ["task.weighted=true"], "not a number from 0 to 1000"),
        ("chat", {"weight": 0.5}, ["task.weighted=false"], "taken with task.weighted=true"),
        ("chat", {"weight": True}, ["task.weighted=true"], "message 2: its weight is True"),
    ],
)
def test_weights_that_are_none_are_refused_by_file_and_row(
    name: str,
    row: dict[str, Any],
    more: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole: dict[str, Any] = {"tokens": WORDS, "tags": TAGS}
    if name == "seq2seq":
        whole = {"source": "a fault", "target": "the house"}
    elif name == "chat":
        user = {"role": "user", "content": "a fault"}
        whole = {"messages": [user, {"role": "assistant", "content": "the house"} | row]}
        row = {}
    with pytest.raises((DataError, Refused), match="row 1") as seen:
        plan_of(tmp_path, monkeypatch, name, [json.loads(json.dumps(whole | row))], *more)
    assert said in str(seen.value)
