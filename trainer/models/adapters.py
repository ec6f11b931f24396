"""Training a part of a model: small new parameters beside frozen ones, or layers left frozen.

The one door to peft. Its layers stand in a model's place with names of their own:

    model.layers.0.self_attn.q_proj.weight                  without
    model.layers.0.self_attn.q_proj.base_layer.weight       frozen
    model.layers.0.self_attn.q_proj.lora_A.default.weight   trained; lora_B, lora_magnitude_vector
    model.layers.0.self_attn.k_proj.ia3_l.default           trained: (outputs, 1), or (1, inputs)
    model.layers.0.mlp.down_proj.bottleneck.down.weight     trained; ours (bottleneck.py)

Frozen parameters have no gradient, no moments and no place in a checkpoint: they come from where
they came from at the start, a folder or the initialiser, whenever a model is made.
"""

from __future__ import annotations

import importlib
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from trainer.capacity.adaptation import is_feed_forward
from trainer.config.sections.adapters import (
    BottleneckAdapter,
    FrozenLayers,
    Ia3Adapter,
    LoraAdapter,
    PromptAdapter,
)
from trainer.config.sections.model import Model
from trainer.errors import ConfigError, Problem
from trainer.models.bottleneck import Bottleneck
from trainer.models.factors import let_factors_be_gathered
from trainer.models.language_model import LanguageModel
from trainer.models.magnitudes import let_lengths_be_measured
from trainer.models.prompts import Prompt, refuse_to_generate
from trainer.models.targets import refuse_pattern, targets, trained_whole
from trainer.models.wrappers import AnyModel

_ADAPTER = re.compile(
    r"\.(lora_(A|B|magnitude_vector)\.default(\.weight)?|ia3_l\.default"
    r"|bottleneck\.(down|up)\.(weight|bias))$|^prompt\."
)
STARTING = "starting_weight"  # leaf of what a matrix began as, beside it (mixout.py); frozen
_PLACE = re.compile(r"\.(lora_(A|B|magnitude_vector)|ia3_l|bottleneck)\.")


def fit_adapter(model: AnyModel, section: Model) -> AnyModel:
    """The model with what `section.adapter` asks for, and the rest frozen. On meta, in place.

    A head that stands on a trunk is trained in any case: nobody has trained it before.
    Raises: ConfigError if a pattern matches nothing, naming what there is.
    """
    adapter = section.adapter
    if isinstance(adapter, FrozenLayers):
        _freeze(model, adapter)
    elif isinstance(adapter, LoraAdapter | Ia3Adapter | BottleneckAdapter):
        whole = trained_whole(model, adapter)
        if isinstance(adapter, BottleneckAdapter):
            _narrow(model, adapter)
        else:
            config = peft_config(model, section, names=targets(model, adapter))
            peft: Any = importlib.import_module("peft")
            peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        for parameter in whole:
            parameter.requires_grad_(True)
        let_factors_be_gathered(model)
        let_lengths_be_measured(model, transposed=lies_transposed(model))
    elif isinstance(adapter, PromptAdapter):
        _prompted(model, adapter)
    return model


def is_adapter(name: str) -> bool:
    return _ADAPTER.search(name) is not None


def is_magnitude(name: str) -> bool:
    """DoRA's lengths of rows: they begin as those of the frozen matrix."""
    return ".lora_magnitude_vector." in name


def base_name(name: str) -> str:
    """A parameter's name in the model without adapters; of what it began as, its own."""
    return re.sub(rf"\.{STARTING}$", ".weight", name.replace(".base_layer.", "."))


def place_of(name: str) -> str:
    """The matrix that a parameter of an adapter stands beside."""
    return _PLACE.split(name)[0]


def lies_transposed(model: AnyModel) -> bool:
    """Are the layers' matrices (inputs, outputs), as GPT-2's are?"""
    return bool(model.hf.config.model_type == "gpt2")


def peft_config(model: AnyModel, section: Model, *, names: list[str]) -> Any:
    """What peft is told, here and in an exported adapter's config. `names`: of the matrices."""
    peft: Any = importlib.import_module("peft")
    adapter = section.adapter
    if isinstance(adapter, PromptAdapter):
        return _prompt_config(model, adapter)
    if isinstance(adapter, Ia3Adapter):
        return peft.IA3Config(
            target_modules=names,
            feedforward_modules=[n for n in names if is_feed_forward(n)],
            init_ia3_weights=False,
            fan_in_fan_out=lies_transposed(model),
        )
    assert isinstance(adapter, LoraAdapter)
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=names,
        use_dora=adapter.kind == "dora",
        use_rslora=adapter.rslora,
        init_lora_weights=False,  # on meta there is nothing to initialise
        fan_in_fan_out=lies_transposed(model),
    )


def load_adapter(base: Any, folder: Path) -> Any:
    """peft's own model, ready to answer: a Hugging Face model and a folder of peft's over it."""
    peft: Any = importlib.import_module("peft")
    return peft.PeftModel.from_pretrained(base, folder).eval()


# --- layers left frozen ---------------------------------------------------------------------------


def _freeze(model: AnyModel, adapter: FrozenLayers) -> None:
    named = list(model.named_parameters())
    for pattern in adapter.frozen:
        found = [p for name, p in named if fnmatchcase(name, pattern)]
        if not found:
            refuse_pattern("model.adapter.frozen", pattern, [name for name, _ in named])
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for _, p in named):
        what = "these patterns freeze every parameter, so that nothing would be trained"
        raise ConfigError([Problem("model.adapter.frozen", what, "")])


# --- virtual tokens -------------------------------------------------------------------------------


_PROMPTS = {
    "prompt": ("PromptTuningConfig", "PromptEmbedding"),
    "p_tuning": ("PromptEncoderConfig", "PromptEncoder"),
    "prefix": ("PrefixTuningConfig", "PrefixEncoder"),
}


def _prompt_config(model: AnyModel, adapter: PromptAdapter) -> Any:
    peft: Any = importlib.import_module("peft")
    config = model.hf.config
    heads, width = config.num_attention_heads, config.hidden_size
    keys = getattr(config, "num_key_value_heads", None) or heads
    made = getattr(peft, _PROMPTS[adapter.kind][0])(
        task_type="CAUSAL_LM",
        num_virtual_tokens=adapter.virtual_tokens,
        num_layers=config.num_hidden_layers,
        num_attention_heads=keys if adapter.kind == "prefix" else heads,
        token_dim=width * keys // heads if adapter.kind == "prefix" else width,
        num_transformer_submodules=1,
    )
    if adapter.kind == "p_tuning":
        made.encoder_hidden_size = width
    return made


def _prompted(model: AnyModel, adapter: PromptAdapter) -> None:
    """Raises: ConfigError for models that no virtual token stands before."""
    config, where = model.hf.config, "model.adapter"
    if not isinstance(model, LanguageModel):
        what = f"virtual tokens stand before a decoder's row, and {config.model_type} is none here"
        raise ConfigError([Problem(where, what, "model/adapter=lora")])
    is_odd = getattr(config, "head_dim", None) not in (
        None,
        config.hidden_size // config.num_attention_heads,
    )
    if adapter.kind == "prefix" and (is_odd or getattr(config, "sliding_window", None)):
        what = "peft's prefixes know no sliding windows, and no heads of another width"
        raise ConfigError([Problem(where, what, "model/adapter=prompt")])
    peft: Any = importlib.import_module("peft")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    made = _prompt_config(model, adapter)
    encoder_class = getattr(peft, _PROMPTS[adapter.kind][1])
    more = [model.hf.get_input_embeddings()] if adapter.kind == "prompt" else []
    with torch.device("meta"):
        encoder = encoder_class(made, *more).to(next(model.parameters()).dtype)
    is_prefix = adapter.kind == "prefix"
    model.prompt = Prompt(encoder, virtual_tokens=adapter.virtual_tokens, is_prefix=is_prefix)
    model.hf.generate = refuse_to_generate


# --- beside matrices ------------------------------------------------------------------------------


def _narrow(model: AnyModel, adapter: BottleneckAdapter) -> None:
    names = targets(model, adapter)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        base = model.get_submodule(name)
        weight = base.get_parameter("weight")
        outputs = weight.shape[1 if lies_transposed(model) else 0]
        made = Bottleneck(base, size=adapter.size, outputs=outputs)
        setattr(model.get_submodule(owner), leaf, made)
