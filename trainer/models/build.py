"""The door to transformers: a model section -> a model whose parameters are on the meta device.

Classes are imported when a model is built (a Llama class alone costs seconds).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config.sections.model import FolderModel, ShapeModel
from trainer.errors import ConfigError, LonghaulError, ModelError, Problem
from trainer.models.language_model import LanguageModel
from trainer.records.json_file import read_untrusted_json


@dataclass(frozen=True)
class _Family:
    """Where transformers keeps a family, and how a shape is said in its config."""

    config_class: str
    model_class: str
    settings: Callable[[ShapeModel], dict[str, Any]]


def hf_config(section: ShapeModel | FolderModel, vocab_size: int) -> Any:
    """Hugging Face's configuration of the model, with `vocab_size` entries of the embedding.

    Raises: ConfigError if the family cannot have that shape; ModelError if a folder is no model,
    of an unknown family, or has another vocabulary.
    """
    if isinstance(section, FolderModel):
        return _folder_config(section, vocab_size)
    family = _FAMILIES[section.family]
    _check_shape(section)
    try:
        config = _load(section.family, "config_class")(
            vocab_size=vocab_size,
            tie_word_embeddings=section.tie_word_embeddings,
            initializer_range=section.initializer_range,
            use_cache=False,
            bos_token_id=None,  # the tokenizer's, known at export
            eos_token_id=None,
            **family.settings(section),
        )
    except Exception as e:
        raise _refused(section, e) from e
    return config


def build_model(
    section: ShapeModel | FolderModel,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> LanguageModel:
    """The model with parameters of `dtype` on the meta device and exact buffers on the CPU.

    Takes milliseconds and no memory whatever the size; the engine gives it storage piece by piece.
    `device` (where it will run; default the CPU) is only asked whether the attention runs there.

    Raises: as `hf_config`; ConfigError for flash attention where it cannot run.
    """
    _check_attention(section.attention, device or torch.device("cpu"))
    config = hf_config(section, vocab_size)
    try:
        hf = _construct(config, dtype, section.attention)
    except Exception as e:
        raise _refused(section, e) from e
    if section.activation_checkpointing:
        hf.activation_checkpointing_enable({"use_reentrant": False})
    model = LanguageModel(hf, loss_chunk_tokens=section.loss_chunk_tokens)
    model.train()
    return model


def import_family(section: ShapeModel | FolderModel) -> None:
    """Import what `build_model` needs, for processes that are forked from this one.

    A folder that cannot be used is left for whoever builds the model to complain about.
    """
    if isinstance(section, FolderModel):
        try:
            family = str(_read_config(Path(section.path)).get("model_type", ""))
        except ModelError:
            return
    else:
        family = section.family
    if family in _FAMILIES:
        _load(family, "config_class")
        _load(family, "model_class")


def small_model(section: ShapeModel | FolderModel, *, device: torch.device) -> LanguageModel:
    """A model of the same family and attention, small enough to run in milliseconds.

    Two layers; a sliding window shrinks to 4 positions. Parameters are real and uninitialised.
    """
    config = hf_config(section, _vocab_size(section))
    heads = config.num_attention_heads
    groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
    # Rotary tables may be written for one head width; learned positions do not care.
    rotary = getattr(config, "rope_parameters", None)
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) if rotary else 16
    small: dict[str, Any] = {
        "vocab_size": SMALL_VOCAB,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 2 * width,
        "pad_token_id": None,
    }
    for name, value in {
        "intermediate_size": 64,
        "num_key_value_heads": 1 if groups > 1 else 2,
        "sliding_window": 4,
        "n_positions": 64,
        "n_inner": 64,
        "layer_types": (getattr(config, "layer_types", None) or [])[:2],
    }.items():
        if getattr(config, name, None):
            small[name] = value
    for name, value in small.items():
        setattr(config, name, value)
    config.tie_word_embeddings = False
    attention = section.attention
    if device.type == "cpu" and attention == "flash_attention_2":
        attention = "sdpa"
    model = LanguageModel(_construct(config, torch.float32, attention), loss_chunk_tokens=0)
    model.to_empty(device=device)  # nothing is tied, and buffers get their exact values back
    model.eval()
    return model


SMALL_VOCAB = 64


def _vocab_size(section: ShapeModel | FolderModel) -> int:
    if isinstance(section, ShapeModel):
        return section.vocab_size or SMALL_VOCAB
    return int(_read_config(Path(section.path)).get("vocab_size", 0))


def _construct(config: Any, dtype: torch.dtype, attention: str) -> Any:
    model_class = _load(config.model_type, "model_class")
    with torch.device("meta"):
        return model_class._from_config(config, dtype=dtype, attn_implementation=attention)


def _refused(section: ShapeModel | FolderModel, e: Exception) -> LonghaulError:
    """transformers raises errors of many types, some of many lines, for a shape it refuses."""
    lines = str(e).strip().splitlines()
    reason = f"{type(e).__name__}: {lines[-1].strip() if lines else ''}"
    if isinstance(section, FolderModel):
        return ModelError(f"{section.path}/config.json: transformers refuses it: {reason}")
    return ConfigError([Problem("model", f"{section.family} refuses this shape: {reason}", "")])


def _load(family: str, what: str) -> Any:
    name = getattr(_FAMILIES[family], what)
    kind = "configuration" if what == "config_class" else "modeling"
    return getattr(importlib.import_module(f"transformers.models.{family}.{kind}_{family}"), name)


def _check_attention(attention: str, device: torch.device) -> None:
    if attention != "flash_attention_2":
        return
    if device.type != "cuda":
        raise ConfigError(
            [
                Problem(
                    "model.attention",
                    "flash_attention_2 runs on CUDA devices only, and this run is on the CPU",
                    "model.attention=sdpa",
                )
            ]
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            [
                Problem(
                    "model.attention",
                    "flash_attention_2 needs the package flash-attn, which is not installed",
                    "model.attention=sdpa (or: pip install flash-attn)",
                )
            ]
        )


def _check_shape(s: ShapeModel) -> None:
    problems: list[Problem] = []
    if s.hidden_size % s.num_attention_heads:
        problems.append(
            Problem(
                "model.hidden_size",
                f"{s.hidden_size} is not a multiple of num_attention_heads "
                f"({s.num_attention_heads})",
                f"model.hidden_size={_up(s.hidden_size, s.num_attention_heads)}",
            )
        )
    if s.num_attention_heads % s.num_key_value_heads:
        problems.append(
            Problem(
                "model.num_key_value_heads",
                f"{s.num_key_value_heads} does not divide num_attention_heads "
                f"({s.num_attention_heads})",
                f"model.num_key_value_heads={s.num_attention_heads}",
            )
        )
    if s.family in ("gpt2", "gpt_neox"):
        problems += _check_without_groups(s)
    if problems:
        raise ConfigError(problems)


def _check_without_groups(s: ShapeModel) -> list[Problem]:
    problems = []
    if s.num_key_value_heads != s.num_attention_heads:
        problems.append(
            Problem(
                "model.num_key_value_heads",
                f"{s.family} has no grouped-query attention: {s.num_key_value_heads} must equal "
                f"num_attention_heads ({s.num_attention_heads})",
                f"model.num_key_value_heads={s.num_attention_heads}",
            )
        )
    width = s.hidden_size // s.num_attention_heads
    if s.head_dim != width:
        problems.append(
            Problem(
                "model.head_dim",
                f"{s.family} heads are hidden_size / num_attention_heads wide: {width}, "
                f"not {s.head_dim}",
                f"model.head_dim={width}",
            )
        )
    return problems


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- folders -----------------------------------------------------------------------------------

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _folder_config(section: FolderModel, vocab_size: int) -> Any:
    path = Path(section.path)
    values = _read_config(path)
    family = str(values.get("model_type", ""))
    experts = next((k for k in _EXPERT_KEYS if (values.get(k) or 0) > 1), None)
    if experts is not None:
        raise ModelError(
            f"{path}: a mixture-of-experts model ({experts}={values[experts]}, model_type "
            f"{family!r}) needs expert routing losses and expert parallelism, which Longhaul does "
            f"not have; dense models of these families work: {', '.join(_FAMILIES)}"
        )
    if family not in _FAMILIES:
        raise ModelError(
            f"{path}: model_type {family!r} is not a known family ({', '.join(_FAMILIES)}); it "
            "needs a row in trainer/models/build.py and to pass tests/contract/test_model.py"
        )
    config_class = _load(family, "config_class")
    try:
        # No padding id: that embedding would get no gradient, and it may be a real token's.
        config = config_class.from_dict(values | {"use_cache": False, "pad_token_id": None})
    except Exception as e:
        raise _refused(section, e) from e
    if config.vocab_size != vocab_size:
        raise ModelError(
            f"{path}: its embedding has {config.vocab_size} entries, the plan says {vocab_size}; "
            "plan the run again with this folder"
        )
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = read_untrusted_json(path / "config.json", limit_bytes=1 << 20)
    except FileNotFoundError:
        raise ModelError(f"{path} is no Hugging Face model folder: it has no config.json") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}/config.json cannot be read: {e}") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path}/config.json is not a JSON object")
    return values


# --- families: a shape in Hugging Face's words ----------------------------------------------------


def _rope(s: ShapeModel, **more: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", **more}
    if s.rope_theta is not None:
        rope["rope_theta"] = s.rope_theta
    return {"rope_parameters": rope | (s.rope_scaling or {})}


def _grouped(s: ShapeModel) -> dict[str, Any]:
    return {
        "hidden_size": s.hidden_size,
        "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.num_hidden_layers,
        "num_attention_heads": s.num_attention_heads,
        "num_key_value_heads": s.num_key_value_heads,
        "head_dim": s.head_dim,
        "max_position_embeddings": s.max_position_embeddings,
        "rms_norm_eps": s.norm_eps,
        "attention_dropout": s.dropout,
        **_rope(s),
    }


def _gpt2(s: ShapeModel) -> dict[str, Any]:
    return {
        "n_embd": s.hidden_size,
        "n_inner": s.intermediate_size,
        "n_layer": s.num_hidden_layers,
        "n_head": s.num_attention_heads,
        "n_positions": s.max_position_embeddings,
        "layer_norm_epsilon": s.norm_eps,
        "resid_pdrop": s.dropout,
        "embd_pdrop": s.dropout,
        "attn_pdrop": s.dropout,
    }


def _gpt_neox(s: ShapeModel) -> dict[str, Any]:
    return {
        "hidden_size": s.hidden_size,
        "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.num_hidden_layers,
        "num_attention_heads": s.num_attention_heads,
        "max_position_embeddings": s.max_position_embeddings,
        "layer_norm_eps": s.norm_eps,
        "hidden_dropout": s.dropout,
        "attention_dropout": s.dropout,
        **_rope(s, partial_rotary_factor=s.rotary_fraction or 1.0),
    }


_FAMILIES: dict[str, _Family] = {
    "llama": _Family("LlamaConfig", "LlamaForCausalLM", _grouped),
    "mistral": _Family(
        "MistralConfig",
        "MistralForCausalLM",
        lambda s: _grouped(s) | {"sliding_window": s.sliding_window},
    ),
    "qwen3": _Family("Qwen3Config", "Qwen3ForCausalLM", _grouped),
    "gpt2": _Family("GPT2Config", "GPT2LMHeadModel", _gpt2),
    "gpt_neox": _Family("GPTNeoXConfig", "GPTNeoXForCausalLM", _gpt_neox),
}
