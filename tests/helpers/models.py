"""Tiny models of every family, and ways to give them values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from trainer.config.sections.model import FolderModel, ShapeModel
from trainer.engine.base import FragmentSource
from trainer.engine.model_setup import settle
from trainer.models.build import build_model
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import LanguageModel
from trainer.records.fragment import MASTER, Fragment

FAMILIES = ("llama", "mistral", "qwen3", "gpt2", "gpt_neox")
VOCAB = 97  # odd, so that nothing divides it by luck


def tiny_shape(family: str, **changes: Any) -> ShapeModel:
    """Two layers, 32 wide; grouped-query attention and a short window where the family has them."""
    gpt = family.startswith("gpt")
    values: dict[str, Any] = {
        "kind": "shape",
        "family": family,
        "attention": "sdpa",
        "activation_checkpointing": False,
        "compile": False,
        "loss_chunk_tokens": 0,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if gpt else 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": family == "gpt2",
        "initializer_range": 0.02,
        "norm_eps": 1e-5,
        "rope_theta": None if family == "gpt2" else 10000.0,
        "rotary_fraction": 0.25 if family == "gpt_neox" else None,
        "sliding_window": 5 if family == "mistral" else None,
    }
    return ShapeModel(**(values | changes))


M = TypeVar("M", bound=torch.nn.Module)


def filled(model: M, source: FragmentSource) -> M:
    """The model on the CPU with the source's values: what an engine does on one rank."""
    settle(model, dtype=next(model.parameters()).dtype, device=torch.device("cpu"))
    for name, parameter in model.named_parameters():
        values = torch.empty(parameter.numel())
        fragment = Fragment(name, MASTER, tuple(parameter.shape), 0, parameter.numel())
        source.read(fragment, values)
        parameter.data.copy_(values.view_as(parameter))
    return model


def wide_model(section: ShapeModel | FolderModel, *, std: float = 0.1) -> LanguageModel:
    """Initialised wider than usual, so that attention and logits are far from uniform."""
    model = build_model(section, vocab_size=VOCAB, dtype=torch.float32)
    rules = {
        n: r if r.kind != "normal" else type(r)("normal", std)
        for n, r in initial_rules(model).items()
    }
    return filled(model, InitialValues(rules, seed=3)).eval()


def hugging_face(model: LanguageModel) -> Any:
    """Their own class, built their own way, with our weights."""
    theirs = type(model.hf)(model.hf.config)
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.eval()


def tokens(rows: int = 2, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return torch.randint(VOCAB, (rows, length)), torch.arange(length).expand(rows, length)


def save_folder(model: LanguageModel, path: Path, **kwargs: Any) -> Path:
    hugging_face(model).save_pretrained(path, **kwargs)
    return path


def folder_model(path: Path, weights: str = "pretrained", vocab_size: int = 0) -> FolderModel:
    shared = tiny_shape("llama").model_dump()
    keep = {k: shared[k] for k in FolderModel.model_fields if k in shared}
    said = {"kind": "folder", "path": str(path), "weights": weights, "vocab_size": vocab_size}
    return FolderModel(**(keep | said))
