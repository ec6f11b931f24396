"""Tiny encoders of every family, sharp enough that a leak shows, and rows to give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tests.helpers.models import filled
from trainer.config.sections.model import EncoderShape
from trainer.models.build import build_model
from trainer.models.encoder import EncoderModel
from trainer.models.heads import HeadSpec
from trainer.models.init import InitialValues, Rule, initial_rules

ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
VOCAB = 97
PAD = 1
LENGTHS = (7, 3, 12, 9)  # longer than ModernBERT's window of 4 either side
THREE = HeadSpec("sequence", ("a", "b", "c"), "single_label_classification")


def tiny_encoder(family: str, **changes: Any) -> EncoderShape:
    values: dict[str, Any] = {
        "kind": "encoder",
        "family": family,
        "attention": "sdpa",
        "activation_checkpointing": False,
        "compile": False,
        "loss_chunk_tokens": 0,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 66,
        "pad_token_id": PAD,
        "initializer_range": 0.02,
        "norm_eps": 1e-12 if family == "distilbert" else 1e-5,
        "dropout": 0.0,
    }
    if family in ("bert", "roberta"):
        values["type_vocab_size"] = 2
    if family == "modernbert":
        values |= {"local_attention": 8, "global_attention_every": 2}
    return EncoderShape(**(values | changes))


def sharp_encoder(section: EncoderShape, head: HeadSpec) -> EncoderModel:
    """Values wide enough that attention is far from uniform; biases that are not 0."""
    model = build_model(section, vocab_size=VOCAB, dtype=torch.float32, head=head)
    assert isinstance(model, EncoderModel)
    rules = {
        n: Rule("normal", 0.3) if r.kind != "ones" else r for n, r in initial_rules(model).items()
    }
    return filled(model, InitialValues(rules, seed=3)).eval()


def hugging_face(model: EncoderModel) -> Any:
    """Their own class, built their own way, with our weights; it takes every name, and no other."""
    theirs = type(model.hf)(model.hf.config)
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


@dataclass(frozen=True)
class Examples:
    """The same examples as rows of their own (padded right), and packed into two rows."""

    inputs_ET: torch.Tensor
    mask_ET: torch.Tensor  # int64, 1: a token
    segments_ET: torch.Tensor
    apart: dict[str, torch.Tensor]
    packed: dict[str, torch.Tensor]


def examples() -> Examples:
    random = torch.Generator().manual_seed(7)
    rows, width = len(LENGTHS), max(LENGTHS)
    tokens = [torch.randint(PAD + 1, VOCAB, (n,), generator=random) for n in LENGTHS]
    segments = [(torch.arange(n) >= n // 2).long() for n in LENGTHS]
    labels = [torch.randint(-100, VOCAB, (n,), generator=random).clamp(min=-100) for n in LENGTHS]
    labels = [torch.where(y < 0, -100, y) for y in labels]
    inputs, ids = torch.full((rows, width), PAD), torch.zeros(rows, width, dtype=torch.long)
    mask, ys = ids.clone(), torch.full((rows, width), -100)
    for e, n in enumerate(LENGTHS):
        inputs[e, :n], ids[e, :n], mask[e, :n], ys[e, :n] = tokens[e], segments[e], 1, labels[e]
    apart = {
        "inputs_RT": inputs,
        "positions_RT": torch.arange(width).expand(rows, width) * mask,
        "documents_RT": mask,
        "segments_RT": ids,
        "labels_RT": ys,
        "first_E": torch.arange(rows) * width,
    }
    return Examples(inputs, mask, ids, apart, _packed(tokens, segments, labels))


def _packed(
    tokens: list[torch.Tensor], segments: list[torch.Tensor], labels: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Two rows of 22: examples 0, 1, 2 fill the first; 3 begins the second, then padding."""
    width, row, place, document = 22, 0, 0, 0
    made = {
        "inputs_RT": torch.full((2, width), PAD),
        "positions_RT": torch.zeros(2, width, dtype=torch.long),
        "documents_RT": torch.zeros(2, width, dtype=torch.long),
        "segments_RT": torch.zeros(2, width, dtype=torch.long),
        "labels_RT": torch.full((2, width), -100),
    }
    first = []
    for t, s, y in zip(tokens, segments, labels, strict=True):
        if place + len(t) > width:
            row, place, document = row + 1, 0, 0
        document += 1
        at = slice(place, place + len(t))
        made["inputs_RT"][row, at], made["segments_RT"][row, at] = t, s
        made["labels_RT"][row, at] = y
        made["positions_RT"][row, at] = torch.arange(len(t))
        made["documents_RT"][row, at] = document
        first.append(row * width + place)
        place += len(t)
    return made | {"first_E": torch.tensor([*first, -1])}


def tokens_of(values_RT: torch.Tensor, documents_RT: torch.Tensor) -> torch.Tensor:
    """The values of tokens, example after example: padding left out."""
    return values_RT[documents_RT > 0]
