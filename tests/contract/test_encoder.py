"""Encoders give what Hugging Face's own classes give, and packing changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.encoders import (
    ENCODERS,
    LENGTHS,
    THREE,
    Examples,
    examples,
    hugging_face,
    sharp_encoder,
    tiny_encoder,
    tokens_of,
)
from trainer.errors import ConfigError, ModelError
from trainer.models import encoder as encoder_module
from trainer.models.attention import check_packing, encoder_logits, packing_leak, refuse_leak
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec

TWO = HeadSpec("tokens", ("O", "B"))
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32; sums in another order: 2e-6 measured


def theirs(model: encoder_module.EncoderModel, e: Examples, **more: Any) -> Any:
    """Their answer on padded rows, with their own mask and their own positions."""
    if model.family.has_segments:
        more["token_type_ids"] = e.segments_ET
    with torch.no_grad():
        return hugging_face(model)(input_ids=e.inputs_ET, attention_mask=e.mask_ET, **more)


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_sequences_are_classified_as_by_hugging_face_also_packed(family: str) -> None:
    e, model = examples(), sharp_encoder(tiny_encoder(family), THREE)
    classes = torch.tensor([0, 2, 1, 1])
    found = theirs(model, e, labels=classes)
    apart = model(e.apart, want="sequence")
    torch.testing.assert_close(apart, found.logits, **CLOSE)
    assert float(F.cross_entropy(apart, classes)) == pytest.approx(float(found.loss), abs=1e-6)
    packed = model(e.packed, want="sequence")[: len(LENGTHS)]
    torch.testing.assert_close(packed, found.logits, **CLOSE)
    assert found.logits.std() > 0.1  # far from what a constant would give


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_pooling_by_the_mean_takes_an_examples_own_tokens(pooling: str) -> None:
    e, model = examples(), sharp_encoder(tiny_encoder("modernbert"), THREE)
    model.hf.config.classifier_pooling = pooling
    found = theirs(model, e).logits
    torch.testing.assert_close(model(e.packed, want="sequence")[:-1], found, **CLOSE)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
@torch.no_grad()
def test_other_losses_of_sequences_are_hugging_faces(kind: Any) -> None:
    e, model = (
        examples(),
        sharp_encoder(tiny_encoder("bert"), HeadSpec("sequence", ("x", "y"), kind)),
    )
    targets = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    found = theirs(model, e, labels=targets)
    loss = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    ours = loss(model(e.packed, want="sequence")[:-1], targets)
    assert float(ours) == pytest.approx(float(found.loss), rel=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_tokens_and_spans_are_hugging_faces_also_packed(family: str) -> None:
    e, model = examples(), sharp_encoder(tiny_encoder(family), TWO)
    expected = tokens_of(theirs(model, e).logits, e.mask_ET)
    for fields in (e.apart, e.packed):
        found = tokens_of(model(fields, want="tokens"), fields["documents_RT"])
        torch.testing.assert_close(found, expected, **CLOSE)
    model = sharp_encoder(tiny_encoder(family), HeadSpec("spans"))
    answer = theirs(model, e)
    starts, ends = model(e.packed, want="spans")
    for found, logits in ((starts, answer.start_logits), (ends, answer.end_logits)):
        tokens = tokens_of(found, e.packed["documents_RT"])
        torch.testing.assert_close(tokens, tokens_of(logits, e.mask_ET), **CLOSE)


@pytest.mark.parametrize("family", ENCODERS)
def test_masked_tokens_have_hugging_faces_loss_and_gradient(family: str) -> None:
    e, model = examples(), sharp_encoder(tiny_encoder(family, loss_chunk_tokens=5), HeadSpec("mlm"))
    other = hugging_face(model)
    more = {"token_type_ids": e.segments_ET} if model.family.has_segments else {}
    labels = e.apart["labels_RT"]
    loss = other(input_ids=e.inputs_ET, attention_mask=e.mask_ET, labels=labels, **more).loss
    loss.backward()
    log_probs = model(e.packed, want="mlm")
    ours = -log_probs.sum() / (e.packed["labels_RT"] != -100).sum()
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), abs=2e-6)
    theirs_of = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # a row of embeddings that no token asks for has 0, not None
            assert theirs_of[name].grad is None, name
            continue
        grad = theirs_of[name].grad
        torch.testing.assert_close(parameter.grad, grad, atol=2e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_scores_say_whether_the_label_was_the_first_choice() -> None:
    e, model = examples(), sharp_encoder(tiny_encoder("bert"), HeadSpec("mlm"))
    logits, labels = model(e.packed, want="mlm_logits"), e.packed["labels_RT"]
    log_probs, correct = model(e.packed, want="mlm_scores")
    assert torch.equal(correct, (logits.argmax(-1) == labels))
    torch.testing.assert_close(log_probs, model(e.packed, want="mlm"))
    none = e.packed | {"labels_RT": torch.full_like(labels, -100)}
    assert float(model(none, want="mlm").abs().sum()) == 0.0


@torch.no_grad()
def test_next_sentences_are_told_as_by_hugging_face() -> None:
    e, model = examples(), sharp_encoder(tiny_encoder("bert"), HeadSpec("nsp"))
    follows = torch.tensor([0, 1, 1, 0])
    found = theirs(model, e, labels=e.apart["labels_RT"], next_sentence_label=follows)
    log_probs, logits = model(e.packed, want="nsp")
    masked = -log_probs.sum() / (e.packed["labels_RT"] != -100).sum()
    ours = masked + F.cross_entropy(logits[:-1], follows)
    assert float(ours) == pytest.approx(float(found.loss), abs=2e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ENCODERS)
def test_packed_examples_do_not_see_each_other(family: str, attention: str) -> None:
    check_packing(tiny_encoder(family, attention=attention), device=torch.device("cpu"))


@pytest.mark.parametrize("family", ENCODERS)
def test_a_mask_that_lets_examples_see_each_other_is_caught(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_a_row(queries_RS: torch.Tensor, keys_RT: torch.Tensor) -> torch.Tensor:
        return ((queries_RS > 0).unsqueeze(-1) == (keys_RT > 0).unsqueeze(-2)).unsqueeze(1)

    monkeypatch.setattr(encoder_module, "same_document", all_of_a_row)
    model = sharp_encoder(tiny_encoder(family), HeadSpec("mlm"))
    assert packing_leak(encoder_logits(model), device=torch.device("cpu")) > 1e-2
    with pytest.raises(ModelError, match="documents packed into one row see each other"):
        refuse_leak(encoder_logits(model), name=family, device=torch.device("cpu"))
    with pytest.raises(ModelError, match=f"model {family}: documents packed"):
        check_packing(tiny_encoder(family), device=torch.device("cpu"))


def test_heads_that_do_not_fit_are_refused() -> None:
    def build(family: str, head: HeadSpec | None) -> None:
        build_model(tiny_encoder(family), vocab_size=97, dtype=torch.float32, head=head)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="roberta has no nsp head; bert has one"):
        build("roberta", HeadSpec("nsp"))
    with pytest.raises(ConfigError, match="bert is an encoder: it cannot predict the next token"):
        build("bert", None)
    for wrong, said in (
        ({"kind": "tokens"}, "a tokens head needs at least one label, and there is none"),
        ({"kind": "mlm", "labels": ("a",)}, "a mlm head has no labels, and 1 are named"),
        ({"kind": "tokens", "labels": ("a", "b", "a")}, "the label 'a' is named twice"),
        ({"kind": "sequence", "labels": ("a",)}, "a sequence head must say its problem_type"),
    ):
        with pytest.raises(ConfigError, match=said):
            HeadSpec(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a choice of one class needs at least two"):
        HeadSpec("sequence", ("a",), "single_label_classification")


def test_flash_attention_is_refused_by_name() -> None:
    shape = tiny_encoder("bert", attention="flash_attention_2")
    with pytest.raises(ConfigError, match="takes no block mask, which encoders need"):
        build_model(shape, vocab_size=97, dtype=torch.float32, head=THREE)
