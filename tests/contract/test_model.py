"""What every model family promises; a new family joins by its line in tests/helpers/models.py."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import FAMILIES, VOCAB, filled, tiny_shape
from trainer.batch import IGNORED, TokenBatch
from trainer.config.sections.model import FolderModel, ShapeModel
from trainer.errors import ConfigError, ModelError
from trainer.models.attention import check_packing, packing_leak, refuse_leak
from trainer.models.build import build_model, hf_config
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import LanguageModel, compile_model
from trainer.models.weights import SafetensorsFolder
from trainer.tasks.causal_lm import CausalLm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", FAMILIES)


def _model(section: ShapeModel | FolderModel, *, std: float = 0.1) -> LanguageModel:
    """Initialised wider than usual, so that attention and logits are far from uniform."""
    model = build_model(section, vocab_size=VOCAB, dtype=torch.float32)
    rules = {
        n: r if r.kind != "normal" else type(r)("normal", std)
        for n, r in initial_rules(model).items()
    }
    return filled(model, InitialValues(rules, seed=3)).eval()


def _hugging_face(model: LanguageModel) -> Any:
    """Their own class, built their own way, with our weights."""
    theirs = type(model.hf)(model.hf.config)
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.eval()


def _tokens(rows: int = 2, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return torch.randint(VOCAB, (rows, length)), torch.arange(length).expand(rows, length)


def _save(model: LanguageModel, path: Path, **kwargs: Any) -> Path:
    _hugging_face(model).save_pretrained(path, **kwargs)
    return path


def _folder(path: Path, weights: str = "pretrained") -> FolderModel:
    shared = tiny_shape("llama").model_dump()
    keep = {k: shared[k] for k in FolderModel.model_fields if k in shared}
    return FolderModel(**(keep | {"kind": "folder", "path": str(path), "weights": weights}))


# --- building -----------------------------------------------------------------------------------


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
    assert time.process_time() - begin < 5.0
    assert sum(p.numel() for p in model.parameters()) == 70_553_706_496
    assert sum(b.numel() for b in model.buffers()) < 1000


# --- what it computes ---------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_hugging_faces_own_model(family: str, tied: bool) -> None:
    model = _model(tiny_shape(family, tie_word_embeddings=tied))
    inputs, positions = _tokens()
    theirs = _hugging_face(model)(input_ids=inputs, use_cache=False).logits
    ours = model.logits(inputs, positions)
    assert theirs.std() > 0.05  # else equality would say little
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_logits_of_their_documents(family: str, attention: str) -> None:
    model = _model(tiny_shape(family, attention=attention))
    inputs, _ = _tokens(rows=2, length=30)
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
    inputs, positions = _tokens()
    gradients = []
    for changes in ({}, {"activation_checkpointing": True, "loss_chunk_tokens": 5}):
        model = _model(tiny_shape(family, dropout=0.1, **changes)).train()
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
    model = _model(tiny_shape("llama"))
    inputs, positions = _tokens()
    names = [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        before = model.logits(inputs, positions)
        compile_model(model)
        torch.testing.assert_close(model.logits(inputs, positions), before, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one for all layers
    assert [n for n, _ in model.named_parameters()] == names


# --- the task -----------------------------------------------------------------------------------


def _batch(labels_RT: torch.Tensor, inputs_RT: torch.Tensor) -> TokenBatch:
    positions = torch.arange(inputs_RT.shape[1]).expand_as(inputs_RT)
    terms = int((labels_RT != IGNORED).sum())
    return TokenBatch(inputs_RT, labels_RT, positions, (0, 1), terms, inputs_RT.numel())


def test_causal_lm_sums_losses_over_terms_and_counts_right_answers() -> None:
    model = _model(tiny_shape("llama", loss_chunk_tokens=5))
    inputs, positions = _tokens()
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
    model = _model(tiny_shape("llama"))
    inputs, _ = _tokens()
    loss = CausalLm().loss_sum(model, _batch(torch.full_like(inputs, IGNORED), inputs))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


# --- the probe ----------------------------------------------------------------------------------


@every_family
def test_the_probe_admits_every_family_at_any_size_in_half_a_second(family: str) -> None:
    gpt = family.startswith("gpt")
    section = tiny_shape(
        family,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=32 if gpt else 8,
        head_dim=128,
        intermediate_size=11008,
        num_hidden_layers=32,
        vocab_size=128256,
        max_position_embeddings=8192,
        sliding_window=4096 if family == "mistral" else None,
    )
    state = torch.get_rng_state()
    build_model(section, vocab_size=128256, dtype=torch.float32)  # imports are not the probe's
    begin = time.process_time()
    check_packing(section, device=_CPU)
    assert time.process_time() - begin < 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_whose_documents_see_each_other_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    bert = BertModel(config, add_pooling_layer=False).eval()

    def logits(inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = bert(input_ids=inputs, position_ids=positions).last_hidden_state
        return hidden

    with pytest.raises(ModelError, match=r"see each other.*data\.packing=false"):
        refuse_leak(logits, name="bert", device=_CPU)


@every_family
def test_the_probe_sees_what_a_cache_would_do(family: str) -> None:
    """The planted fault: with a key-value cache Hugging Face ignores restarting positions."""
    model = _model(tiny_shape(family))

    def logits(inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = model.hf.base_model(input_ids=inputs, position_ids=positions, use_cache=True)
        return model.lm_head(hidden.last_hidden_state)

    assert packing_leak(logits, device=_CPU) > 1e-2


# --- folders ------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_that_transformers_wrote_loads_with_equal_logits(
    family: str, tied: bool, tmp_path: Path
) -> None:
    original = _model(tiny_shape(family, tie_word_embeddings=tied))
    _save(original, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = build_model(_folder(tmp_path), vocab_size=VOCAB, dtype=torch.float32)
    layout = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    filled(model, SafetensorsFolder(tmp_path, layout)).eval()
    inputs, positions = _tokens()
    ours, theirs = model.logits(inputs, positions), original.logits(inputs, positions)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    check_packing(_folder(tmp_path), device=_CPU)


def test_a_folders_padding_token_is_trained_like_any_other(tmp_path: Path) -> None:
    original = _model(tiny_shape("llama"))
    original.hf.config.pad_token_id = 3
    _save(original, tmp_path)
    model = build_model(_folder(tmp_path), vocab_size=VOCAB, dtype=torch.float32)
    layout = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    filled(model, SafetensorsFolder(tmp_path, layout))
    inputs, positions = torch.full((1, 4), 3), torch.arange(4).unsqueeze(0)
    model(inputs, positions, inputs).sum().backward()
    gradient = dict(model.named_parameters())["model.embed_tokens.weight"].grad
    assert gradient is not None
    assert gradient[3].abs().max() > 0


def _config_only(path: Path, **values: Any) -> FolderModel:
    (path / "config.json").write_text(json.dumps(values))
    return _folder(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "bert", "vocab_size": VOCAB}, "'bert' is not a known family .*test_model"),
        ({}, "model_type '' is not a known family"),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            r"mixture-of-experts model \(num_local_experts=8.*expert parallelism",
        ),
        ({"model_type": "llama", "vocab_size": 5}, "embedding has 5 entries, the plan says 97"),
        ({"model_type": "llama", "vocab_size": "many"}, "transformers refuses it"),
    ],
)
def test_folders_that_cannot_be_trained_are_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        build_model(_config_only(tmp_path, **values), vocab_size=VOCAB, dtype=torch.float32)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no Hugging Face model folder: it has no config\.json"):
        hf_config(_folder(tmp_path), VOCAB)
    for text, said in (("{", "cannot be read"), ("[]", "not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=said):
            hf_config(_folder(tmp_path), VOCAB)


# --- shapes that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"hidden_size": 33}, r"hidden_size: 33 is not a multiple.*try: .*=36"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ("gpt2", {"num_key_value_heads": 2}, "gpt2 has no grouped-query attention"),
        ("gpt_neox", {"head_dim": 16}, r"head_dim: gpt_neox heads are .* wide: 8, not 16"),
        ("llama", {"rope_scaling": {"rope_type": "odd"}}, "llama refuses this shape"),
        ("llama", {"attention": "flash_attention_2"}, r"CUDA devices only.*model\.attention=sdpa"),
    ],
)
def test_impossible_shapes_are_refused_with_the_setting(
    family: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        build_model(tiny_shape(family, **changes), vocab_size=VOCAB, dtype=torch.float32)
