"""Folders for others: the config transformers reads, and loading one the way a user would."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from trainer.config.sections.model import Model
from trainer.errors import ModelError
from trainer.models.hf_config import hf_config


def save_config(
    section: Model,
    folder: Path,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    end_of_text_id: int,
) -> None:
    """Write config.json and generation_config.json. Raises: as hf_config."""
    transformers = importlib.import_module("transformers")
    config = hf_config(section, vocab_size)
    config.use_cache = True
    config.dtype = dtype
    config.bos_token_id = config.eos_token_id = config.pad_token_id = end_of_text_id
    config.architectures = [transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(folder)


def causal_lm(section: Model, *, vocab_size: int) -> Any:
    """transformers' own model of that shape, fp32 on the CPU, with values nobody chose yet."""
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_config(
        hf_config(section, vocab_size), attn_implementation=section.attention
    )


def load_pretrained(folder: Path, *, dtype: torch.dtype) -> Any:
    """`AutoModelForCausalLM.from_pretrained`, which must set every weight and meet no other.

    Raises: ModelError naming what is missing or too much, or what transformers said.
    """
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()  # it would run through our own lines
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as e:  # transformers raises many types
        raise ModelError(f"transformers cannot load {folder}: {e}") from e
    wrong = {k: sorted(v) for k, v in report.items() if v and k != "error_msgs"}
    if wrong or report.get("error_msgs"):
        raise ModelError(f"transformers does not find in {folder} what it expects: {wrong}")
    model.eval()
    return model
