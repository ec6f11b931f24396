"""Training a part of a model: low-rank adapters through peft, or layers left frozen.

The one door to peft. Its layers stand in a model's place with names of their own:

    model.layers.0.self_attn.q_proj.weight                  without
    model.layers.0.self_attn.q_proj.base_layer.weight       frozen
    model.layers.0.self_attn.q_proj.lora_A.default.weight   trained; lora_B, lora_magnitude_vector

Frozen parameters have no gradient, no moments and no place in a checkpoint: they come from where
they came from at the start, a folder or the initialiser, whenever a model is made.
"""

from __future__ import annotations

import importlib
import re
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from trainer.config.sections.model import FrozenLayers, LoraAdapter, Model
from trainer.errors import ConfigError, Problem
from trainer.models.encoder import EncoderModel
from trainer.models.wrappers import AnyModel

_ADAPTER = re.compile(r"\.lora_(A|B|magnitude_vector)\.default(\.weight)?$")
_IN_LAYER = re.compile(r"\.(layers|layer|h|block)\.\d+\.")


def fit_adapter(model: AnyModel, section: Model) -> AnyModel:
    """The model with what `section.adapter` asks for, and the rest frozen. On meta, in place.

    A head that stands on a trunk is trained in any case: nobody has trained it before.
    Raises: ConfigError if a pattern matches nothing, naming what there is.
    """
    adapter = section.adapter
    if isinstance(adapter, FrozenLayers):
        _freeze(model, adapter)
    elif isinstance(adapter, LoraAdapter):
        _low_rank(model, adapter)
    return model


def is_adapter(name: str) -> bool:
    return _ADAPTER.search(name) is not None


def is_magnitude(name: str) -> bool:
    """DoRA's lengths of rows: they begin as those of the frozen matrix."""
    return ".lora_magnitude_vector." in name


def base_name(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return name.replace(".base_layer.", ".")


def lies_transposed(model: AnyModel) -> bool:
    """Are the layers' matrices (inputs, outputs), as GPT-2's are?"""
    return bool(model.hf.config.model_type == "gpt2")


# --- layers left frozen ---------------------------------------------------------------------------


def _freeze(model: AnyModel, adapter: FrozenLayers) -> None:
    named = list(model.named_parameters())
    for pattern in adapter.frozen:
        found = [p for name, p in named if fnmatchcase(name, pattern)]
        if not found:
            _refuse_pattern("model.adapter.frozen", pattern, [name for name, _ in named])
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for _, p in named):
        what = "these patterns freeze every parameter, so that nothing would be trained"
        raise ConfigError([Problem("model.adapter.frozen", what, "")])


# --- low-rank matrices ----------------------------------------------------------------------------


def _low_rank(model: AnyModel, adapter: LoraAdapter) -> None:
    peft: Any = importlib.import_module("peft")
    targets = _targets(model, adapter)
    trained = _outside_the_trunk(model) if isinstance(model, EncoderModel) else []
    config = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.kind == "dora",
        init_lora_weights=False,  # on meta there is nothing to initialise
        fan_in_fan_out=lies_transposed(model),
    )
    peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    for parameter in trained:
        parameter.requires_grad_(True)


def _targets(model: AnyModel, adapter: LoraAdapter) -> list[str]:
    """Whole names of the matrices that the patterns mean."""
    matrices = [n for n, m in model.named_modules() if _is_matrix(m) and _IN_LAYER.search(n)]
    found: set[str] = set()
    for pattern in adapter.targets:
        matched = [n for n in matrices if pattern == "all" or _matches(n, pattern)]
        if not matched:
            short = sorted({_IN_LAYER.split(n)[-1] for n in matrices})
            _refuse_pattern("model.adapter.targets", pattern, short)
        found |= set(matched)
    return sorted(found)


def _matches(name: str, pattern: str) -> bool:
    if "*" in pattern:
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _outside_the_trunk(model: AnyModel) -> list[nn.Parameter]:
    """The head's own parameters, a pooler's with them; a tied embedding is the trunk's."""
    trunk = f"{model.hf.base_model_prefix}."
    return [
        p
        for name, p in model.named_parameters()
        if not name.startswith(trunk) or name.startswith(f"{trunk}pooler.")
    ]


def _refuse_pattern(where: str, pattern: str, names: list[str]) -> None:
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    raise ConfigError([Problem(where, f"{pattern!r} matches nothing; there is {shown}", "")])


# --- what they come to ----------------------------------------------------------------------------


def merged_rows(
    base: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of the matrix that computes what a frozen one and its adapter compute together.

    fp32. Shapes: O of the rows of the output, I inputs, r rank; base (O, I), a (r, I), b (O, r),
    magnitude (O). Source: peft 0.21, lora.layer.Linear.merge and lora.dora.
    """
    whole: torch.Tensor = base + scale * (b @ a)
    if magnitude is None:
        return whole
    longer: torch.Tensor = magnitude / whole.norm(dim=1)
    return whole * longer.unsqueeze(-1)
