"""What every model family promises; a new family joins by its line in tests/helpers/models.py."""

from __future__ import annotations

import time

import pytest
import torch

from tests.helpers.models import (
    FAMILIES,
    VOCAB,
    filled,
    hugging_face,
    tiny_shape,
    tokens,
    wide_model,
)
from trainer.batch import IGNORED, TokenBatch
from trainer.models.build import build_model
from trainer.models.hf_config import hf_config
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import compile_model
from trainer.tasks.causal_lm import CausalLm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", FAMILIES)


# --- building ------------------------------------------------------------------------------------


@every_family
def test_parameters_are_on_meta_and_carry_hugging_faces_names(family: str) -> None:
    for tied in (False, True):
        section = tiny_shape(family, tie_word_embeddings=tied)
        model = build_model(section, vocab_size=VOCAB, dtype=torch.bfloat16)
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        ours = {n: tuple(p.shape) for n, p in model.named_parameters()}
        theirs = type(model.hf)(hf_config(section, VOCAB)).named_parameters()
        assert ours == {n: tuple(p.shape) for n, p in theirs}
        assert ("lm_head.weight" in ours) is not tied


@every_family
def test_casting_the_model_leaves_rotary_frequencies_exact(family: str) -> None:
    model = build_model(tiny_shape(family), vocab_size=VOCAB, dtype=torch.bfloat16)
    exact = dict(type(model.hf)(model.hf.config).named_buffers())
    model.bfloat16()
    ours = dict(model.named_buffers())
    assert ours.keys() == exact.keys()
    for name, buffer in ours.items():
        assert torch.equal(buffer, exact[name].float())
        assert not buffer.is_meta


@every_family
def test_every_number_of_a_shape_reaches_the_config(family: str) -> None:
    section = tiny_shape(family, norm_eps=3e-4, dropout=0.07, rope_theta=123.0)
    config = hf_config(section, 77)
    same = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "tie_word_embeddings",
        "initializer_range",
    )
    assert {n: getattr(config, n) for n in same} == {n: getattr(section, n) for n in same}
    assert config.vocab_size == 77
    gpt2 = family == "gpt2"
    assert getattr(config, "n_inner" if gpt2 else "intermediate_size") == 64
    eps = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}.get(family, "rms_norm_eps")
    assert getattr(config, eps) == 3e-4
    assert getattr(config, "attn_pdrop" if gpt2 else "attention_dropout") == 0.07
    if not gpt2:
        assert config.rope_parameters["rope_theta"] == 123.0
    if not family.startswith("gpt"):
        assert (config.num_key_value_heads, config.head_dim) == (2, 8)
    if family == "gpt_neox":
        assert config.rope_parameters["partial_rotary_factor"] == 0.25
    if family == "mistral":
        assert config.sliding_window == 5


def test_a_70b_model_is_built_in_no_time_and_no_memory() -> None:
    section = tiny_shape(
        "llama",
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=8192,
    )
    begin = time.process_time()
    model = build_model(section, vocab_size=128256, dtype=torch.bfloat16)
    assert time.process_time() - begin < 30.0
    assert sum(p.numel() for p in model.parameters()) == 70_553_706_496
    assert sum(b.numel() for b in model.buffers()) < 1000


# --- what it computes ----------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_hugging_faces_own_model(family: str, tied: bool) -> None:
    model = wide_model(tiny_shape(family, tie_word_embeddings=tied))
    inputs, positions = tokens()
    theirs = hugging_face(model)(input_ids=inputs, use_cache=False).logits
    ours = model.logits(inputs, positions)
    assert theirs.std() > 0.05  # else equality would say little
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_logits_of_their_documents(family: str, attention: str) -> None:
    model = wide_model(tiny_shape(family, attention=attention))
    inputs, _ = tokens(rows=2, length=30)
    cuts = [(7, 12, 11), (1, 20, 9)]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in cuts])
    packed = model.logits(inputs, positions)
    for r, row in enumerate(cuts):
        start = 0
        for n in row:
            document = inputs[r : r + 1, start : start + n]
            alone = model.logits(document, torch.arange(n).unsqueeze(0))[0]
            torch.testing.assert_close(packed[r, start : start + n], alone, atol=1e-5, rtol=1e-5)
            start += n


@every_family
def test_checkpointing_chunks_and_dropout_do_not_change_the_gradient(family: str) -> None:
    inputs, positions = tokens()
    gradients = []
    for changes in ({}, {"activation_checkpointing": True, "loss_chunk_tokens": 5}):
        model = wide_model(tiny_shape(family, dropout=0.1, **changes)).train()
        torch.manual_seed(9)
        (-model(inputs, positions, inputs).sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0 or name.endswith("bias")
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


@every_family
def test_initial_values_follow_hugging_faces_rules(family: str) -> None:
    section = tiny_shape(family, hidden_size=64, head_dim=16, num_hidden_layers=4)
    model = build_model(section, vocab_size=VOCAB, dtype=torch.float32)
    rules = initial_rules(model)
    assert rules.keys() == dict(model.named_parameters()).keys()
    filled(model, InitialValues(rules, seed=0))
    torch.manual_seed(0)
    theirs = type(model.hf)(model.hf.config)
    for (name, ours), (_, other) in zip(
        model.named_parameters(), theirs.named_parameters(), strict=True
    ):
        if ours.ndim < 2:
            assert torch.equal(ours, other), name
        else:
            assert ours.std().item() == pytest.approx(other.std().item(), rel=0.08), name
            assert abs(ours.mean()) < 0.1 * ours.std(), name


@pytest.mark.filterwarnings("ignore::UserWarning")  # dynamo looks at .grad of inner tensors
def test_compiled_layers_compute_the_same_and_keep_their_names() -> None:
    """Forward only: compiling the backward costs half a minute more and says nothing new."""
    model = wide_model(tiny_shape("llama"))
    inputs, positions = tokens()
    names = [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        before = model.logits(inputs, positions)
        compile_model(model.layers)
        torch.testing.assert_close(model.logits(inputs, positions), before, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one for all layers
    assert [n for n, _ in model.named_parameters()] == names


# --- the task ------------------------------------------------------------------------------------


def _batch(labels_RT: torch.Tensor, inputs_RT: torch.Tensor) -> TokenBatch:
    positions = torch.arange(inputs_RT.shape[1]).expand_as(inputs_RT)
    terms = int((labels_RT != IGNORED).sum())
    return TokenBatch(inputs_RT, labels_RT, positions, (0, 1), terms, inputs_RT.numel())


def test_causal_lm_sums_losses_over_terms_and_counts_right_answers() -> None:
    model = wide_model(tiny_shape("llama", loss_chunk_tokens=5))
    inputs, positions = tokens()
    logits = model.logits(inputs, positions).detach()
    labels = logits.argmax(-1)
    labels[0] = (labels[0] + 1) % VOCAB  # the first row wrong, the second right
    labels[1, :4] = IGNORED
    batch = _batch(labels, inputs)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    got = CausalLm().loss_sum(model, batch)
    torch.testing.assert_close(got.detach().float(), loss)
    assert got.dtype == torch.float64, "thousands of terms in fp32 lose the seventh digit"
    assert got.requires_grad
    scores = CausalLm().score(model, batch)
    assert scores == {"terms": 20.0, "loss": pytest.approx(loss.item()), "correct": 8.0}


def test_a_batch_without_terms_gives_zero_and_gradients_of_zero() -> None:
    model = wide_model(tiny_shape("llama"))
    inputs, _ = tokens()
    loss = CausalLm().loss_sum(model, _batch(torch.full_like(inputs, IGNORED), inputs))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())
