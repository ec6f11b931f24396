"""Our sums, divided by their terms, are the losses that Hugging Face's own heads compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.batch import IGNORED
from trainer.data.sentence_pairs import FOLLOWS, RANDOM
from trainer.objectives.cross_entropy import (
    class_loss_sum,
    multi_label_loss_sum,
    regression_loss_sum,
    span_loss_sum,
    token_loss_sum,
)

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 40, "max_position_embeddings": 16,
}  # fmt: skip
IDS = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(1))
LABELS = torch.where(IDS % 3 == 0, IDS % 5, IGNORED)
ONES = torch.ones(4)
CLOSE = {"rel": 2e-6}  # theirs is an fp32 mean; measured differences are below 2e-7


@pytest.fixture(scope="module")
def vendor() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 1])),
        ("multi_label_classification", torch.eye(4)[:, :3]),
        ("regression", torch.tensor([[0.5, 1, 2], [1, 0, 0], [4, 4, 4], [0, -1, 0]])),
    ],
)  # fmt: skip
def test_whole_examples(vendor: Any, kind: str, targets: torch.Tensor) -> None:
    config = vendor.BertConfig(**SIZES, num_labels=3, problem_type=kind)
    answer = vendor.BertForSequenceClassification(config).eval()(IDS, labels=targets)
    if kind.startswith("single"):
        ours = class_loss_sum(answer.logits, targets, weights_E=ONES)
    elif kind.startswith("multi"):
        ours = multi_label_loss_sum(answer.logits, targets, weights_E=ONES)
    else:
        ours = regression_loss_sum(answer.logits, targets, weights_E=ONES)
    assert ours.item() / 4 == pytest.approx(answer.loss.item(), **CLOSE)


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForMaskedLM"])
def test_tokens(vendor: Any, head: str) -> None:
    model = getattr(vendor, head)(vendor.BertConfig(**SIZES, num_labels=5)).eval()
    answer = model(IDS, labels=LABELS)
    terms = (LABELS != IGNORED).sum().item()
    ours = token_loss_sum(answer.logits, LABELS).item() / terms
    assert ours == pytest.approx(answer.loss.item(), **CLOSE)


def test_answer_spans(vendor: Any) -> None:
    starts, ends = torch.tensor([0, 3, 8, 2]), torch.tensor([0, 5, 8, 7])
    model = vendor.BertForQuestionAnswering(vendor.BertConfig(**SIZES)).eval()
    answer = model(IDS, start_positions=starts, end_positions=ends)
    ours = span_loss_sum((answer.start_logits, answer.end_logits), (starts, ends), weights_E=ONES)
    assert ours.item() / 4 == pytest.approx(answer.loss.item(), **CLOSE)


def test_next_sentences_carry_their_labels(vendor: Any) -> None:
    """By their documentation 0 says that the second sentence continues the first."""
    labels = torch.tensor([FOLLOWS, RANDOM, RANDOM, FOLLOWS])
    model = vendor.BertForNextSentencePrediction(vendor.BertConfig(**SIZES)).eval()
    answer = model(IDS, labels=labels)
    ours = class_loss_sum(answer.logits, labels, weights_E=ONES)
    assert ours.item() / 4 == pytest.approx(answer.loss.item(), **CLOSE)
    assert (FOLLOWS, RANDOM) == (0, 1)
    assert "0 indicates sequence B is a continuation" in (model.forward.__doc__ or "")


def test_decoders_of_encoder_decoders(vendor: Any) -> None:
    config = vendor.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40,
        decoder_start_token_id=0,
    )  # fmt: skip
    answer = vendor.T5ForConditionalGeneration(config).eval()(input_ids=IDS, labels=LABELS)
    terms = (LABELS != IGNORED).sum().item()
    ours = token_loss_sum(answer.logits, LABELS).item() / terms
    assert ours == pytest.approx(answer.loss.item(), **CLOSE)
