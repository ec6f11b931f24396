"""Encoder-decoders give what Hugging Face's own classes give; packing is exact, or refused."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.models import VOCAB, filled, folder_model
from trainer.errors import ModelError
from trainer.models import encoder_decoder
from trainer.models.attention import check_packing
from trainer.models.build import build_model
from trainer.models.encoder_decoder import EncoderDecoderModel
from trainer.models.heads import HeadSpec
from trainer.models.init import InitialValues, Rule, initial_rules
from trainer.models.starting import starting_values

_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "max_position_embeddings": 64, "dropout": 0.0}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "t5": _T5 | {"dropout_rate": 0.0},
    "t5 gated, untied": _T5 | {"dropout_rate": 0.0, "feed_forward_proj": "gated-gelu",
                               "tie_word_embeddings": False},
    "bart": _BART,
}  # fmt: skip
SOURCES, TARGETS = (7, 3, 9), (4, 6, 5)
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def sharp(name: str, tmp_path: Any) -> EncoderDecoderModel:
    import transformers

    kind = transformers.T5Config if name.startswith("t5") else transformers.BartConfig
    kind(vocab_size=VOCAB, pad_token_id=0, **SHAPES[name]).save_pretrained(tmp_path)
    section = folder_model(tmp_path, weights="fresh")
    section = section.model_copy(update={"loss_chunk_tokens": 4})
    model: Any = build_model(
        section, vocab_size=VOCAB, dtype=torch.float32, head=HeadSpec("seq2seq")
    )
    wide = Rule("normal", 0.3)
    rules = {n: r if r.kind == "ones" else wide for n, r in initial_rules(model).items()}
    return filled(model, InitialValues(rules, seed=3)).eval()  # type: ignore[no-any-return]


def hugging_face(model: EncoderDecoderModel) -> Any:
    """Their own class with our weights, read from a folder: where the output and the embedding
    differ there, transformers has two.
    """
    with TemporaryDirectory() as folder:
        model.hf.config.save_pretrained(folder)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
        theirs = type(model.hf).from_pretrained(folder)
    return theirs.eval()


def pairs() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    random = torch.Generator().manual_seed(7)
    sources = [torch.randint(2, VOCAB, (n,), generator=random) for n in SOURCES]
    return sources, [torch.randint(2, VOCAB, (n,), generator=random) for n in TARGETS]


def row(sources: list[torch.Tensor], targets: list[torch.Tensor], *, pad: int) -> dict[str, Any]:
    """One row of all pairs, with some padding behind."""
    inputs = torch.cat([*sources, torch.zeros(pad, dtype=torch.long)])
    shifted = [torch.cat([torch.ones(1, dtype=torch.long), t[:-1]]) for t in targets]
    numbers = range(1, len(sources) + 1)
    documents = [torch.full((len(s),), n) for s, n in zip(sources, numbers, strict=True)]
    made = [torch.full((len(t),), n) for t, n in zip(targets, numbers, strict=True)]
    end = torch.zeros(pad, dtype=torch.long)
    return {
        "inputs_RT": inputs.unsqueeze(0),
        "documents_RT": torch.cat([*documents, end]).unsqueeze(0),
        "decoder_inputs_RS": torch.cat([*shifted, end]).unsqueeze(0),
        "decoder_documents_RS": torch.cat([*made, end]).unsqueeze(0),
        "labels_RS": torch.cat([*targets, end - 100]).unsqueeze(0),
    }


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_a_pair_alone_gives_hugging_faces_loss_and_gradient(
    name: str, pad: int, tmp_path: Any
) -> None:
    model = sharp(name, tmp_path)
    other = hugging_face(model)
    source, target = (x[0] for x in pairs())
    given = {"input_ids": source.unsqueeze(0), "labels": target.unsqueeze(0)}
    given["decoder_input_ids"] = row([source], [target], pad=0)["decoder_inputs_RS"]
    loss = other(**given).loss
    loss.backward()
    ours = -model(row([source], [target], pad=pad)).sum() / len(target)
    ours.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=2e-6)
    theirs = dict(other.named_parameters())
    for key, parameter in model.named_parameters():
        grad = theirs[key].grad
        close = 1e-5 * max(1.0, float(grad.abs().max()))  # sums in another order
        torch.testing.assert_close(parameter.grad, grad, atol=close, rtol=1e-4)


def leak(model: EncoderDecoderModel) -> float:
    """Largest change of a logit by packing, as a share of the largest."""
    sources, targets = pairs()
    with torch.no_grad():
        packed = model(row(sources, targets, pad=2), want="logits")[0, : sum(TARGETS)]
        alone = [
            model(row([s], [t], pad=0), want="logits")[0] for s, t in zip(*pairs(), strict=True)
        ]
    whole = torch.cat(alone)
    return float((packed - whole).abs().max() / whole.abs().max())


@pytest.mark.parametrize("name", ["t5", "t5 gated, untied"])
def test_pairs_packed_into_a_row_do_not_see_each_other(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp(name, tmp_path)
    assert leak(model) < 1e-5
    monkeypatch.setattr(encoder_decoder, "_own_source", lambda s, t: (s > 0).unsqueeze(-1)[:, None]
                        & (t > 0)[:, None, None])  # fmt: skip
    assert leak(model) > 1e-2


def test_barts_places_of_a_row_make_packing_wrong(tmp_path: Any) -> None:
    assert leak(sharp("bart", tmp_path)) > 1e-2
    with pytest.raises(ModelError, match="its positions are places of a row"):
        check_packing(folder_model(tmp_path, weights="fresh"), device=torch.device("cpu"))


@pytest.mark.parametrize("name", SHAPES)
def test_a_pretrained_folder_is_loaded_whole(name: str, tmp_path: Any) -> None:
    made = sharp(name, tmp_path)
    hugging_face(made).save_pretrained(tmp_path)
    section = folder_model(tmp_path)
    model: Any = build_model(
        section, vocab_size=VOCAB, dtype=torch.float32, head=HeadSpec("seq2seq")
    )
    source = starting_values(section, model, seed=3)
    assert source.new == ()
    model = filled(model, source)
    for key, parameter in made.named_parameters():
        assert torch.equal(parameter, model.get_parameter(key)), key
    file = tmp_path / "model.safetensors"
    gone = next(n for n in load_file(file) if "layers.1.fc1.weight" in n or "SelfAttention.q" in n)
    save_file({n: v for n, v in load_file(file).items() if n != gone}, file)
    with pytest.raises(ModelError, match=f"it lacks {gone}"):
        starting_values(section, model, seed=3)
