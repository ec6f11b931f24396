"""The user's settings, shrunk to what a laptop runs in seconds: same choices, small numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.capacity.folder import shape_of_folder
from trainer.config.schema import Config
from trainer.config.sections.model import EncoderDecoderShape, EncoderShape, FolderModel
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import ConfigError, Problem

ROWS = 24  # of a step: cut into 1, 2 or 4 micro-steps on 1, 2 or 3 ranks
ROW_TOKENS = 32
_HEADS, _HEAD_DIM, _LAYERS, _WIDTH = 4, 8, 2, 32
_TEXT = "the a night train long road carries quiet heavy wheels over old bridge and river"
_WORDS = _TEXT.split()


def shrunk(
    config: Config, folder: Path, *, name: str, steps: int, fp32: bool, dropout: float = 0.0
) -> Config:
    """Settings of a run in `folder`.

    Kept: family, attention, checkpointing, chunked loss, optimizer, schedule, engine, packing, seed
    and, unless `fp32`, precision; a task of its own (`has_own_task`) with its data. Changed: sizes,
    dropout (layouts draw it differently, so 0 to compare them), offload (none), everything that
    only watches; of next tokens the data too, a corpus that this writes.
    """
    values = config.model_dump(mode="json")
    values["run"] |= {"root": str(folder / "runs"), "name": name, "trust": []}
    values["steps"] |= {
        "total": steps,
        "epochs": None,
        "save_every": 0,
        "eval_every": 0,
        "log_every": 1,
        "pause_at": 0,
    }
    values["batch"] = {"global_batch_size": ROWS, "micro_batch_size": ROWS}
    own = has_own_task(config)
    values["model"] = _small_model(config, dropout, own=own)
    if own:
        values["data"]["prefetch_steps"] = 0
    else:
        values["task"] = {"kind": "causal_lm"}
        values["data"] = _small_data(config, folder)
    values["evals"] |= {"held_out_rows": 0, "sample_tokens": 0}
    values["observers"] |= {"peak_tflops": 1.0}
    for name in ("tensorboard", "console"):
        values["observers"][name]["enabled"] = False
    values["observers"]["wandb"]["mode"] = "off"
    values["observers"]["profiler"]["first_step"] = 0
    values["resume"] = {"mode": "auto", "allow": []}
    values["restart"] |= {"enabled": False, "standby": False}  # a failure here is a finding
    values["checkpoint"]["peer"]["every"] = 0  # a proof goes on from what was written
    values["resources"] |= {"nodes": 1, "ranks_per_node": 1, "device": "cpu", "rendezvous_port": 0}
    values["resources"] |= {"threads_per_rank": 1}
    _small_optimizer(values, steps)
    if isinstance(config.engine, DeepSpeedEngine):
        values["engine"] |= {"offload_optimizer": "none", "offload_parameters": "none"}
    if fp32:
        values["precision"]["kind"] = "fp32"
    return Config.model_validate(values)


def has_own_task(config: Config) -> bool:
    """Whether proofs are made with the user's task and data: what a row holds is the task's."""
    return config.task.kind not in ("causal_lm", "custom")


def _small_optimizer(values: dict[str, Any], steps: int) -> None:
    """Bounds on rounding hold for learning rates up to 1e-3 and gradients clipped at 1."""
    optimizer, schedule = values["optimizer"], values["schedule"]
    optimizer["learning_rate"] = min(optimizer["learning_rate"], 1e-3)
    if "adamw_learning_rate" in optimizer:
        optimizer["adamw_learning_rate"] = min(optimizer["adamw_learning_rate"], 1e-3)
    if optimizer["kind"] == "sgd":
        optimizer |= {"weight_decay": 0.0}
    if schedule["warmup_steps"] or schedule["warmup_tokens"]:
        schedule |= {"warmup_steps": min(2, steps), "warmup_tokens": 0}


def _small_model(config: Config, dropout: float, *, own: bool) -> dict[str, Any]:
    """Raises: ConfigError for an encoder of which next tokens are asked, or that is a folder's."""
    model = config.model
    positions = config.data.sequence_length if own else 2 * ROW_TOKENS
    if isinstance(model, EncoderShape | EncoderDecoderShape):
        if not own:
            raise ConfigError([_no_decoder(model.family)])
        if isinstance(model, EncoderShape):
            return _small_encoder(model, dropout, positions=positions)
        return _small_stacks(model, dropout, positions=positions)
    if isinstance(model, FolderModel):
        shape = shape_of_folder(Path(model.path), needs_weights=False)
        if shape.is_encoder or shape.is_encoder_decoder:
            raise ConfigError([_in_a_folder(shape) if own else _no_decoder(shape.family)])
        family, tied = shape.family, shape.tie_word_embeddings
        grouped = shape.num_key_value_heads < shape.num_attention_heads
    else:
        family, tied = model.family, model.tie_word_embeddings
        grouped = model.num_key_value_heads < model.num_attention_heads
    gpt = family in ("gpt2", "gpt_neox")
    return {
        "kind": "shape",
        "family": family,
        "attention": model.attention,
        "activation_checkpointing": model.activation_checkpointing,
        "compile": False,  # minutes of compilation for seconds of training
        "loss_chunk_tokens": 16 if model.loss_chunk_tokens else 0,
        "vocab_size": 0,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 2 if grouped else _HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "initializer_range": 0.02,
        "norm_eps": 1e-5,
        "rope_theta": None if family == "gpt2" else 10000.0,
        "rotary_fraction": 0.25 if family == "gpt_neox" else None,
        "sliding_window": positions // 4 if family == "mistral" else None,
        "dropout": dropout,
    } | ({} if gpt else {"rope_scaling": None})


def _no_decoder(family: str) -> Problem:
    what = f"{family} does not predict next tokens, which proofs are made with"
    return Problem("model", what, "the model of a decoder, such as model=llama_debug")


def _in_a_folder(shape: Any) -> Problem:
    preset = "model=encoder_decoder_debug" if shape.is_encoder_decoder else "model=encoder_debug"
    what = f"proofs are made with small models, and {shape.family}'s are not made from a folder"
    return Problem("model", what, f"the shape of a preset, such as {preset}")


def _small_encoder(model: EncoderShape, dropout: float, *, positions: int) -> dict[str, Any]:
    return model.model_dump(mode="json") | {
        "compile": False,
        "loss_chunk_tokens": 16 if model.loss_chunk_tokens else 0,
        "vocab_size": 0,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": positions + model.pad_token_id + 1,
        "local_attention": model.local_attention and ROW_TOKENS // 2,
        "dropout": dropout,
    }


def _small_stacks(model: EncoderDecoderShape, dropout: float, *, positions: int) -> dict[str, Any]:
    return model.model_dump(mode="json") | {
        "compile": False,
        "loss_chunk_tokens": 16 if model.loss_chunk_tokens else 0,
        "vocab_size": 0,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_decoder_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": model.max_position_embeddings and positions,
        "dropout": dropout,
    }


def _small_data(config: Config, folder: Path) -> dict[str, Any]:
    corpus = folder / "corpus.jsonl"
    rows = (json.dumps({"text": _document(n)}) for n in range(400))
    corpus.write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = {"kind": "files", "format": "jsonl", "paths": [str(corpus)]}
    return config.data.model_dump(mode="json") | {
        "sequence_length": ROW_TOKENS,
        "sources": {"corpus": source},
        "tokenizer": {"kind": "train_bpe", "vocab_size": 300, "sample_bytes": 20_000},
        "store_root": str(folder / "stores"),
        "held_out_fraction": 0.0,
        "shard_tokens": 4096,
        "num_workers": 1,
        "prefetch_steps": 0,
    }


def _document(number: int) -> str:
    """1 to 80 words: rows must be packed and cut, and no two rows have as many terms."""
    length = 1 + number * number * 7 % 80
    words = (_WORDS[(number * 5 + i * (3 + number % 7)) % len(_WORDS)] for i in range(length))
    return " ".join(words) + "."
