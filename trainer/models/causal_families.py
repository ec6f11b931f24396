"""The families of causal models: where transformers keeps them, and how a shape is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.config.sections.model import ShapeModel
from trainer.errors import ConfigError, Problem


@dataclass(frozen=True)
class CausalFamily:
    """Where transformers keeps a family, and how a shape is said in its config."""

    config_class: str
    model_class: str
    settings: Callable[[ShapeModel], dict[str, Any]]
    reward_class: str


def check_shape(s: ShapeModel) -> None:
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


FAMILIES: dict[str, CausalFamily] = {
    "llama": CausalFamily(
        "LlamaConfig", "LlamaForCausalLM", _grouped, "LlamaForSequenceClassification"
    ),
    "mistral": CausalFamily(
        "MistralConfig",
        "MistralForCausalLM",
        lambda s: _grouped(s) | {"sliding_window": s.sliding_window},
        "MistralForSequenceClassification",
    ),
    "qwen3": CausalFamily(
        "Qwen3Config", "Qwen3ForCausalLM", _grouped, "Qwen3ForSequenceClassification"
    ),
    "gpt2": CausalFamily("GPT2Config", "GPT2LMHeadModel", _gpt2, "GPT2ForSequenceClassification"),
    "gpt_neox": CausalFamily(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", _gpt_neox, "GPTNeoXForSequenceClassification"
    ),
}
