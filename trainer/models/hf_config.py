"""Hugging Face's configuration of a model, from a shape written out or from a folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from trainer.config.sections.model import EncoderDecoderShape, EncoderShape, FolderModel, Model
from trainer.errors import ConfigError, LonghaulError, ModelError, Problem
from trainer.models import causal_families, encoder_decoder, encoder_families
from trainer.models.heads import HeadSpec
from trainer.records.json_file import read_untrusted_json


def hf_config(section: Model, vocab_size: int, *, head: HeadSpec | None = None) -> Any:
    """Hugging Face's configuration of the model, with `vocab_size` entries of the embedding.

    Raises: ConfigError if the family cannot have that shape; ModelError if a folder is no model,
    of an unknown family, or has another vocabulary.
    """
    more = {} if head is None else head.settings
    if isinstance(section, FolderModel):
        return _folder_config(section, vocab_size, more)
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "initializer_range": section.initializer_range,
        **more,
    }
    if isinstance(section, EncoderDecoderShape):
        values = {"vocab_size": vocab_size} | encoder_decoder.settings(section)
    elif isinstance(section, EncoderShape):
        values |= {"pad_token_id": section.pad_token_id}
        values |= encoder_families.FAMILIES[section.family].settings(section)
    else:
        causal_families.check_shape(section)
        values |= {
            "tie_word_embeddings": section.tie_word_embeddings,
            "use_cache": False,
            "bos_token_id": None,  # the tokenizer's, known at export
            "eos_token_id": None,
            **causal_families.FAMILIES[section.family].settings(section),
        }
    try:
        return load_class(section.family, config_class(section.family))(**values)
    except Exception as e:
        raise refused(section, e) from e


def family_of(section: Model) -> str:
    """Hugging Face's name of the architecture. Raises: ModelError if a folder does not say it."""
    if isinstance(section, FolderModel):
        return str(read_config(Path(section.path)).get("model_type", ""))
    return section.family


def config_class(family: str) -> str:
    if family in encoder_decoder.FAMILIES:
        return encoder_decoder.FAMILIES[family][0]
    known = encoder_families.FAMILIES | causal_families.FAMILIES
    return known[family].config_class


def load_class(family: str, name: str) -> Any:
    """Imported when it is asked for: a Llama class alone costs seconds."""
    kind = "configuration" if name.endswith("Config") else "modeling"
    return getattr(importlib.import_module(f"transformers.models.{family}.{kind}_{family}"), name)


def refused(section: Model, e: Exception) -> LonghaulError:
    """transformers raises errors of many types, some of many lines, for a shape it refuses."""
    lines = str(e).strip().splitlines()
    reason = f"{type(e).__name__}: {lines[-1].strip() if lines else ''}"
    if isinstance(section, FolderModel):
        return ModelError(f"{section.path}/config.json: transformers refuses it: {reason}")
    return ConfigError([Problem("model", f"{section.family} refuses this shape: {reason}", "")])


_LABELS = ("id2label", "label2id", "num_labels", "problem_type")
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _folder_config(section: FolderModel, vocab_size: int, more: dict[str, Any]) -> Any:
    path = Path(section.path)
    values = read_config(path)
    family = str(values.get("model_type", ""))
    experts = next((k for k in _EXPERT_KEYS if (values.get(k) or 0) > 1), None)
    if experts is not None:
        raise ModelError(
            f"{path}: a mixture-of-experts model ({experts}={values[experts]}, model_type "
            f"{family!r}) needs expert routing losses and expert parallelism, which Longhaul does "
            f"not have; dense models of these families work: {', '.join(_known())}"
        )
    if family not in _known():
        raise ModelError(
            f"{path}: model_type {family!r} is not a known family ({', '.join(_known())}); it "
            "needs a row in trainer/models/*_families.py and to pass tests/contract/test_model.py"
        )
    if family in causal_families.FAMILIES:
        # No padding id: that embedding would get no gradient, and it may be a real token's.
        more = more | {"use_cache": False, "pad_token_id": None}
    if more:  # the labels are the task's, not those of whoever trained the folder
        values = {k: v for k, v in values.items() if k not in _LABELS}
    try:
        config = load_class(family, config_class(family)).from_dict(values | more)
    except Exception as e:
        raise refused(section, e) from e
    if section.vocab_size and config.vocab_size <= section.vocab_size == vocab_size:
        config.vocab_size = vocab_size
    if config.vocab_size != vocab_size:
        raise ModelError(
            f"{path}: its embedding has {config.vocab_size} entries, the plan says {vocab_size}; "
            "plan the run again with this folder"
        )
    return config


def _known() -> list[str]:
    return [*causal_families.FAMILIES, *encoder_families.FAMILIES, *encoder_decoder.FAMILIES]


def read_config(path: Path) -> dict[str, Any]:
    try:
        values = read_untrusted_json(path / "config.json", limit_bytes=1 << 20)
    except FileNotFoundError:
        raise ModelError(f"{path} is no Hugging Face model folder: it has no config.json") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}/config.json cannot be read: {e}") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path}/config.json is not a JSON object")
    return values
