"""Preferences against formulas written out over Hugging Face's own models, one answer at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.models import FAMILIES, VOCAB, filled, hugging_face, tiny_shape, wide_model
from trainer.batch import CHOSEN, IGNORED, REJECTED, ExampleBatch
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.models.init import InitialValues, Rule, initial_rules
from trainer.models.language_model import LanguageModel
from trainer.tasks.preference import Dpo, Orpo, Reward

# (prompt, chosen, rejected) in tokens; the first two pairs share a row
LENGTHS = ((3, 4, 2), (2, 1, 5), (4, 3, 3))
ROWS = ((0, 1), (2,))
BETA, SMOOTHING, LAMBDA = 0.3, 0.1, 0.2


def pairs() -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """(prompt and chosen, prompt and rejected, where answers begin)."""
    random = torch.Generator().manual_seed(11)
    found = []
    for prompt, chosen, rejected in LENGTHS:
        asked, *answers = (
            torch.randint(VOCAB, (n,), generator=random) for n in (prompt, chosen, rejected)
        )
        one, other = (torch.cat([asked, answer]) for answer in answers)
        found.append((one, other, prompt))
    return found


def batch() -> ExampleBatch:
    """As the reader makes it: pairs packed into rows of 30, padded with a token that is real."""
    shape = (len(ROWS), 30)
    inputs, labels = torch.full(shape, 7), torch.full(shape, IGNORED)
    documents, answers = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    first = []
    for r, row in enumerate(ROWS):
        at = 0
        for document, number in enumerate(row, 1):
            one, other, begin = pairs()[number]
            length = len(one) + len(other)
            first.append(r * shape[1] + at)
            documents[r, at : at + length] = document
            positions[r, at : at + length] = torch.arange(length)
            for whose, ids in ((CHOSEN, one), (REJECTED, other)):
                inputs[r, at : at + len(ids)] = ids
                answers[r, at : at + len(ids)] = whose
                labels[r, at + begin - 1 : at + len(ids) - 1] = ids[begin:]
                at += len(ids)
    fields = {
        "inputs_RT": inputs,
        "labels_RT": labels,
        "answers_RT": answers,
        "documents_RT": documents,
        "positions_RT": positions,
        "first_E": torch.tensor(first),
        "weights_E": torch.ones(len(first)),
    }
    return ExampleBatch(fields, (0, 1), len(first), 60)


def answer_log_prob(theirs: Any, ids: torch.Tensor, begin: int) -> torch.Tensor:
    """log p(answer | prompt), by a model that sees this answer alone."""
    logits = theirs(input_ids=ids[None]).logits[0].float()
    said = torch.log_softmax(logits[begin - 1 : -1], -1)
    return said.gather(-1, ids[begin:, None]).sum()


def policy_and_reference(family: str) -> tuple[LanguageModel, Any, Any]:
    """Ours, a reference of other weights inside; and both as Hugging Face's classes."""
    model, reference = wide_model(tiny_shape(family)), wide_model(tiny_shape(family), std=0.15)
    theirs = hugging_face(model), hugging_face(reference)
    model.reference = reference.requires_grad_(False)
    return model, *theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_is_the_formula_over_hugging_faces_models(family: str) -> None:
    model, theirs, their_reference = policy_and_reference(family)
    losses, margins = [], []
    for one, other, begin in pairs():
        policy = [answer_log_prob(theirs, ids, begin) for ids in (one, other)]
        with torch.no_grad():
            before = [answer_log_prob(their_reference, ids, begin) for ids in (one, other)]
        logits = (policy[0] - policy[1]) - (before[0] - before[1])
        losses.append(
            -F.logsigmoid(BETA * logits) * (1 - SMOOTHING)
            - F.logsigmoid(-BETA * logits) * SMOOTHING
        )
        margins.append(BETA * logits)
    task = Dpo(BETA, SMOOTHING)
    ours = task.loss_sum(model, batch())
    assert ours.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-6)
    assert_same_gradients(model, ours, theirs, torch.stack(losses).sum())
    scores = task.values(task.score(model, batch()))
    assert scores["margin"] == pytest.approx(torch.stack(margins).mean().item(), abs=1e-6)
    assert scores["accuracy"] == sum(float(m > 0) for m in margins) / 3


def assert_same_gradients(model: torch.nn.Module, ours: Any, theirs: Any, expected: Any) -> None:
    ours.backward()
    expected.backward()
    of_theirs = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        if name.startswith("reference."):
            assert parameter.grad is None
            continue
        torch.testing.assert_close(parameter.grad, of_theirs[name].grad, rtol=1e-4, atol=2e-6)


def test_orpo_is_the_formula_over_hugging_faces_model() -> None:
    model = wide_model(tiny_shape("llama"))
    theirs = hugging_face(model)
    losses, odds = [], []
    for one, other, begin in pairs():
        mean, worse = (
            answer_log_prob(theirs, ids, begin) / (len(ids) - begin) for ids in (one, other)
        )
        ratio = (mean - worse) - (torch.log1p(-torch.exp(mean)) - torch.log1p(-torch.exp(worse)))
        losses.append(-mean - LAMBDA * F.logsigmoid(ratio))
        odds.append(ratio)
    task = Orpo(LAMBDA)
    ours = task.loss_sum(model, batch())
    assert ours.item() == pytest.approx(torch.stack(losses).sum().item(), rel=1e-6)
    assert_same_gradients(model, ours, theirs, torch.stack(losses).sum())
    scores = task.values(task.score(model, batch()))
    assert scores["margin"] == pytest.approx(torch.stack(odds).mean().item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_are_those_of_hugging_faces_classifier(family: str) -> None:
    """One label, read at the last token: AutoModelForSequenceClassification of the family."""
    made: Any = build_model(
        tiny_shape(family), vocab_size=VOCAB, dtype=torch.float32, head=HeadSpec("reward")
    )
    rules = {
        n: Rule("normal", 0.1) if r.kind == "normal" else r for n, r in initial_rules(made).items()
    }
    model = filled(made, InitialValues(rules, seed=3)).eval()
    theirs = type(model.hf)(model.hf.config)
    theirs.load_state_dict(model.state_dict())
    theirs.eval()
    margins = []
    for one, other, _ in pairs():
        better, worse = (theirs(input_ids=ids[None]).logits[0, 0] for ids in (one, other))
        margins.append(better - worse)
    expected = -F.logsigmoid(torch.stack(margins)).sum()
    ours = Reward().loss_sum(model, batch())
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, ours, theirs, expected)
    scores = Reward().values(Reward().score(model, batch()))
    assert scores["accuracy"] == sum(float(m > 0) for m in margins) / 3
    assert scores["margin"] == pytest.approx(torch.stack(margins).mean().item(), abs=1e-6)


@pytest.mark.parametrize("task", [Dpo(BETA, 0.0), Orpo(LAMBDA)])
def test_padding_alone_is_no_pair(task: Any) -> None:
    """A rank whose rows are all padding runs the model and adds nothing."""
    model, *_ = policy_and_reference("llama")
    whole = batch()
    fields = {name: torch.zeros_like(values) for name, values in whole.fields.items()}
    fields |= {"labels_RT": torch.full_like(fields["labels_RT"], IGNORED)}
    fields |= {"first_E": torch.tensor([-1]), "weights_E": torch.zeros(1)}
    nothing = ExampleBatch(fields, (), 0, 0)
    loss = task.loss_sum(model, nothing)
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert task.score(model, nothing)["terms"] == 0.0
