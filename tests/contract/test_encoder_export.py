"""An exported encoder is a plain Hugging Face folder that answers like ours, also after packing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.encoders import ENCODERS, THREE, VOCAB, examples, sharp_encoder, tiny_encoder
from trainer.errors import ModelError
from trainer.models.encoder import EncoderModel
from trainer.models.exported import load_pretrained, our_answers, save_config, their_answers
from trainer.models.heads import HeadSpec

HEADS = (THREE, HeadSpec("tokens", ("O", "B")), HeadSpec("spans"), HeadSpec("mlm"))


def write(model: EncoderModel, folder: Path, family: str) -> None:
    save_config(
        tiny_encoder(family), folder, vocab_size=VOCAB, dtype=torch.float32, end_of_text_id=None,
        head=model.head_spec,
    )  # fmt: skip
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_folder_answers_like_the_model(family: str, head: HeadSpec, tmp_path: Path) -> None:
    model, packed = sharp_encoder(tiny_encoder(family), head), examples().packed
    write(model, tmp_path, family)
    theirs = load_pretrained(tmp_path, dtype=torch.float32, head=head)
    assert type(theirs).__name__ == type(model.hf).__name__
    if head.labels:
        assert list(theirs.config.id2label.values()) == list(head.labels)
    ours, answers = our_answers(model, packed), their_answers(theirs, packed, head=head)
    assert len(ours) == len(answers) == 4
    for one, other in zip(ours, answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_pretraining_heads_travel_together_and_a_lost_tensor_is_seen(tmp_path: Path) -> None:
    model, packed = sharp_encoder(tiny_encoder("bert"), HeadSpec("nsp")), examples().packed
    write(model, tmp_path, "bert")
    theirs = load_pretrained(tmp_path, dtype=torch.float32, head=model.head_spec)
    answers = their_answers(theirs, packed, head=model.head_spec)
    for one, other in zip(our_answers(model, packed), answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"does not find in .*classifier.weight"):
        load_pretrained(tmp_path, dtype=torch.float32, head=THREE)
