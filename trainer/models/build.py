"""The door to transformers: a model section -> a model whose parameters are on the meta device.

Classes are imported when a model is built (a Llama class alone costs seconds).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, NoReturn, overload

import torch

from trainer.config.sections.model import Model
from trainer.errors import ConfigError, ModelError, Problem
from trainer.models import causal_families, encoder_decoder, encoder_families
from trainer.models.adapters import fit_adapter
from trainer.models.dropout import ATTENTION, attend, drops_in_attention, use_cheap_dropout
from trainer.models.encoder import EncoderModel
from trainer.models.encoder_decoder import EncoderDecoderModel
from trainer.models.heads import HeadSpec
from trainer.models.hf_config import (
    config_class,
    family_of,
    hf_config,
    load_class,
    read_config,
    refused,
)
from trainer.models.language_model import LanguageModel
from trainer.models.reward import RewardModel
from trainer.models.wrappers import AnyModel


@overload
def build_model(
    section: Model,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    head: None = None,
) -> LanguageModel: ...


@overload
def build_model(
    section: Model,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    head: HeadSpec,
) -> EncoderModel | EncoderDecoderModel | RewardModel: ...


def build_model(
    section: Model,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
    head: HeadSpec | None = None,
) -> AnyModel:
    """The model with parameters of `dtype` on the meta device and exact buffers on the CPU.

    Takes milliseconds and no memory whatever the size; the engine gives it storage piece by piece.
    `device` (where it will run; default the CPU) is only asked whether the attention runs there.
    `head`: what stands on it; None: next-token prediction.

    Raises: as `hf_config`; ConfigError for flash attention where it cannot run, or for a head that
    the family has not.
    """
    model = _without_adapter(
        section, vocab_size, dtype=dtype, device=device or torch.device("cpu"), head=head
    )
    return fit_adapter(model, section)


def keep_reference(
    model: AnyModel,
    section: Model,
    *,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> None:
    """Put a frozen copy of the model as it starts beside it, to be sharded as it is.

    Its values come as those of all frozen parameters do (starting.py): from the folder, or the
    initialiser, also when a run goes on. No gradient, moment or checkpoint holds it.
    Raises: as `build_model`.
    """
    there = device or torch.device("cpu")
    reference = _without_adapter(section, vocab_size, dtype=dtype, device=there, head=None)
    assert isinstance(model, LanguageModel)
    assert isinstance(reference, LanguageModel)
    model.reference = reference.requires_grad_(False)


def _without_adapter(
    section: Model,
    vocab_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    head: HeadSpec | None,
) -> AnyModel:
    family = family_of(section)
    model_class = model_class_of(family, head)
    _check_attention(section.attention, device, family)
    config = hf_config(section, vocab_size, head=head)
    try:
        hf = _construct(config, model_class, dtype, section.attention)
        if family in encoder_decoder.FAMILIES and encoder_decoder.has_own_output(section):
            encoder_decoder.give_own_output(hf)
    except Exception as e:
        raise refused(section, e) from e
    if device.type == "cpu":
        use_cheap_dropout(hf)
        if family in encoder_families.FAMILIES and section.attention == "sdpa":
            _use_cheap_attention(hf)
    if section.activation_checkpointing:
        hf.activation_checkpointing_enable({"use_reentrant": False})
    model = _wrapped(hf, family, head, section.loss_chunk_tokens)
    model.train()
    return model


def import_family(section: Model) -> None:
    """Import what `build_model` needs, for processes that are forked from this one.

    A folder that cannot be used is left for whoever builds the model to complain about.
    """
    try:
        family = family_of(section)
    except ModelError:
        return
    if family in causal_families.FAMILIES:
        load_class(family, config_class(family))
        load_class(family, causal_families.FAMILIES[family].model_class)
    elif family in encoder_families.FAMILIES:
        load_class(family, encoder_families.FAMILIES[family].model_class("mlm"))
    elif family in encoder_decoder.FAMILIES:
        load_class(family, encoder_decoder.FAMILIES[family][1])


def small_model(section: Model, *, device: torch.device, head: HeadSpec | None = None) -> AnyModel:
    """A model of the same family and attention, small enough to run in milliseconds.

    Two layers; a sliding window shrinks to 4 positions. Parameters are real and uninitialised.
    """
    config = hf_config(section, _vocab_size(section), head=head)
    for name, value in _small(config).items():
        setattr(config, name, value)
    attention = section.attention
    if device.type == "cpu" and attention == "flash_attention_2":
        attention = "sdpa"
    family = family_of(section)
    hf = _construct(config, model_class_of(family, head), torch.float32, attention)
    model = _wrapped(hf, family, head, 0)
    model.to_empty(device=device)  # nothing is tied, and buffers get their exact values back
    model.eval()
    return model


SMALL_VOCAB = 64


def _small(config: Any) -> dict[str, Any]:
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
        "tie_word_embeddings": False,
    }
    # RoBERTa counts positions from its padding's id; it must stay one of the small vocabulary.
    small["pad_token_id"] = 1 if config.model_type in encoder_families.FAMILIES else None
    for name, value in {
        "intermediate_size": 64,
        "hidden_dim": 64,
        "num_key_value_heads": 1 if groups > 1 else 2,
        "sliding_window": 4,
        "n_positions": 64,
        "n_inner": 64,
        # One layer of each kind, whatever the order of the large model's.
        "layer_types": _two_kinds(getattr(config, "layer_types", None) or []),
    }.items():
        if getattr(config, name, None):
            small[name] = value
    return small


def _two_kinds(layer_types: list[str]) -> list[str]:
    kinds = list(dict.fromkeys(layer_types))
    return (kinds + kinds)[:2]


def _vocab_size(section: Model) -> int:
    if section.kind != "folder":
        return section.vocab_size or SMALL_VOCAB
    return int(read_config(Path(section.path)).get("vocab_size", 0))


def model_class_of(family: str, head: HeadSpec | None) -> str:
    """Raises: ConfigError if the family cannot do what the task asks for."""
    encoder = encoder_families.FAMILIES.get(family)
    if family in encoder_decoder.FAMILIES:
        if head is None or head.kind != "seq2seq":
            _refuse("model", f"{family} is an encoder-decoder: it makes one text from another")
        return encoder_decoder.FAMILIES[family][1]
    if head is None:
        if encoder is not None:
            _refuse("model", f"{family} is an encoder: it cannot predict the next token")
        causal = causal_families.FAMILIES.get(family)
        return "" if causal is None else causal.model_class  # hf_config says what is wrong
    if head.kind == "reward":
        if encoder is not None:
            _refuse("model", f"{family} is an encoder: rewards are numbers of decoders here")
        decoder = causal_families.FAMILIES.get(family)
        return "" if decoder is None else decoder.reward_class
    if encoder is None and family in causal_families.FAMILIES:
        _refuse("model", f"{family} is a causal model: it has no {head.kind} head here")
    return "" if encoder is None else encoder.model_class(head.kind)


def _wrapped(hf: Any, family: str, head: HeadSpec | None, loss_chunk_tokens: int) -> AnyModel:
    if head is None:
        return LanguageModel(hf, loss_chunk_tokens=loss_chunk_tokens)
    if head.kind == "reward":
        return RewardModel(hf)
    if family in encoder_decoder.FAMILIES:
        return EncoderDecoderModel(hf, loss_chunk_tokens=loss_chunk_tokens)
    kept = encoder_families.FAMILIES[family]
    return EncoderModel(hf, family=kept, head=head, loss_chunk_tokens=loss_chunk_tokens)


def _construct(config: Any, model_class: str, dtype: torch.dtype, attention: str) -> Any:
    made = load_class(config.model_type, model_class)
    with torch.device("meta"):
        return made._from_config(config, dtype=dtype, attn_implementation=attention)


def _use_cheap_attention(hf: Any) -> None:
    """Encoders', which is given a mask of choices and not the direction alone."""
    if not drops_in_attention(hf.config):
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    sdpa = AttentionInterface()["sdpa"]
    AttentionInterface.register(ATTENTION, functools.partial(attend, otherwise=sdpa))
    AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
    hf.config._attn_implementation = ATTENTION


def _check_attention(attention: str, device: torch.device, family: str) -> None:
    if attention != "flash_attention_2":
        return
    if family in encoder_families.FAMILIES or family in encoder_decoder.FAMILIES:
        # It would need the bounds of the examples (cu_seqlens) instead of a mask.
        _refuse("model.attention", "flash_attention_2 takes no block mask, which encoders need")
    if device.type != "cuda":
        _refuse(
            "model.attention",
            "flash_attention_2 runs on CUDA devices only, and this run is on the CPU",
        )
    if importlib.util.find_spec("flash_attn") is None:
        _refuse(
            "model.attention",
            "flash_attention_2 needs the package flash-attn, which is not installed",
            fix="model.attention=sdpa (or: pip install flash-attn)",
        )


def _refuse(where: str, what: str, *, fix: str | None = None) -> NoReturn:
    default = "model.attention=sdpa" if where == "model.attention" else ""
    raise ConfigError([Problem(where, what, default if fix is None else fix)])
