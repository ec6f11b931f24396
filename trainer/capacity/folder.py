"""Reading a Hugging Face folder's config.json: known families only, others refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.capacity.encoder import ENCODERS, EncoderFamily
from trainer.capacity.encoder_decoder import ANY_LENGTH, ENCODER_DECODERS, EncoderDecoderFamily
from trainer.capacity.shape import FAMILIES, GATED, Family, Shape
from trainer.capacity.tensor_names import tensor_names
from trainer.errors import ModelError

# Beyond any model there is; a folder may come from anybody.
MOST_OF = {
    "vocab_size": 1 << 27,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 30,
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")


def shape_of_folder(folder: Path, *, needs_weights: bool) -> Shape:
    """The shape of the model in `folder`.

    Raises: ModelError if it is no model folder, its family is not known here, its weights are
    quantised, or weights are needed and there are none in safetensors.
    """
    config = _read(folder)
    family = _family(folder, config)
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} holds quantised weights, which cannot be trained; take the folder they "
            "were made from"
        )
    if needs_weights:
        _check_weights(folder)
    try:
        shape = _shape(family, config, folder)
    except KeyError as e:
        raise ModelError(f"{folder}/config.json has no {e.args[0]}") from None
    except (TypeError, ValueError, ArithmeticError) as e:
        raise ModelError(f"{folder}/config.json has a number that is none: {e}") from None
    _check_sizes(shape, folder)
    return shape


def _shape(family: str, config: dict[str, Any], folder: Path) -> Shape:
    for two_stacks in ENCODER_DECODERS:
        if family == two_stacks:
            _check_stacks(two_stacks, config, folder)
            return _encoder_decoder(two_stacks, config, tied=has_tied_head(folder, config))
    for encoder in ENCODERS:
        if family == encoder:
            return _encoder(encoder, config)
    causal: Family = next(f for f in FAMILIES if f == family)
    make = _gated if causal in GATED else _plain
    return make(causal, config)


def _check_sizes(shape: Shape, folder: Path) -> None:
    """Before anything of these sizes is made, or counted one by one."""
    for name, most in MOST_OF.items():
        value = getattr(shape, name)
        if not 1 <= value <= most:
            raise ModelError(f"{folder}/config.json: {name} is {value}, not from 1 to {most:,}")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(f"{folder} is no model folder: it {what}")
    try:
        config = _json(path, limit_bytes=1 << 20)
    except (OSError, ValueError) as e:
        raise ModelError(f"{path} cannot be read: {e}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{folder} is no model folder: its config.json names no model_type")
    return config


def _json(path: Path, *, limit_bytes: int) -> Any:
    """Of a file that may come from anybody. Raises: OSError; ValueError whatever is wrong."""
    if path.stat().st_size > limit_bytes:
        raise ValueError(f"it is larger than {limit_bytes:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _family(folder: Path, config: dict[str, Any]) -> str:
    name = str(config["model_type"])
    if any(config.get(key) for key in EXPERTS):
        raise ModelError(
            f"{folder} is a mixture-of-experts model ({name}), which is not supported: needed are "
            "the routing loss and experts in the parameter counts"
        )
    every = (*FAMILIES, *ENCODERS, *ENCODER_DECODERS)
    if name not in every:
        known = ", ".join(every)
        raise ModelError(
            f"{folder} is of the family {name}, which is not known here; known are {known}. "
            "Needed are its tensors in trainer/capacity and its initial weights in trainer/models"
        )
    return name


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for s in ("*.bin", "*.pt", "*.pth") for p in folder.glob(s))
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when it "
            "is read: convert them to safetensors first"
        )
    raise ModelError(f"{folder} has no weights (*.safetensors); for new ones: model.weights=fresh")


def _gated(family: Family, config: dict[str, Any]) -> Shape:
    heads = int(config["num_attention_heads"])
    width = int(config["hidden_size"])
    default_dim = 128 if family == "qwen3" else width // heads
    return Shape(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden_size=width,
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or default_dim),
        max_position_embeddings=int(config["max_position_embeddings"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        dropout=float(config.get("attention_dropout") or 0.0),
        sliding_window=_window(family, config),
    )


def _window(family: Family, config: dict[str, Any]) -> int | None:
    """Where a folder does not say, as transformers takes it."""
    if family == "mistral":
        window = config.get("sliding_window", 4096)
    else:
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    return None if window is None else int(window)


def _plain(family: Family, config: dict[str, Any]) -> Shape:
    old = family == "gpt2"  # its names are older than the others'
    width = int(config["n_embd" if old else "hidden_size"])
    heads = int(config["n_head" if old else "num_attention_heads"])
    inner = config.get("n_inner") if old else config["intermediate_size"]
    return Shape(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden_size=width,
        intermediate_size=int(inner or 4 * width),
        num_hidden_layers=int(config["n_layer" if old else "num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=int(config["n_positions" if old else "max_position_embeddings"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", old)),
        dropout=float(config.get("resid_pdrop" if old else "hidden_dropout") or 0.0),
    )


def _encoder(family: EncoderFamily, config: dict[str, Any]) -> Shape:
    """Of the trunk; whoever plans says which head stands on it."""
    old = family == "distilbert"  # its names are its own
    width = int(config["dim" if old else "hidden_size"])
    heads = int(config["n_heads" if old else "num_attention_heads"])
    modern = family == "modernbert"
    return Shape(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden_size=width,
        intermediate_size=int(config["hidden_dim" if old else "intermediate_size"]),
        num_hidden_layers=int(config["n_layers" if old else "num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=int(config["max_position_embeddings"]),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        dropout=_dropout(family, config),
        head="hidden",
        type_vocab_size=int(config.get("type_vocab_size", 2)),
        pad_token_id=int(config.get("pad_token_id", 1 if family == "roberta" else 0) or 0),
        norm_bias=bool(config.get("norm_bias", not modern)),
        classifier_bias=bool(config.get("classifier_bias", not modern)),
        decoder_bias=bool(config.get("decoder_bias", True)),
    )


def has_tied_head(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether an encoder-decoder's output is its embedding. T5 1.1 has one of its own, and files
    that transformers 5 wrote of it say so by `scale_decoder_outputs` alone; where such a folder has
    no output, transformers takes the embedding.
    """
    says_own = (config.get("tie_word_embeddings"), config.get("scale_decoder_outputs"))
    if False not in says_own:
        return True
    names = tensor_names(folder)
    return bool(names) and "lm_head.weight" not in names


def _check_stacks(family: str, config: Mapping[str, Any], folder: Path) -> None:
    """Raises: ModelError for stacks that are not counted here."""
    layers = "decoder_layers" if family == "bart" else "num_decoder_layers"
    numbers = {name: config.get(name) or 1 for name in (layers, "relative_attention_num_buckets")}
    for name, value in numbers.items():
        if not 1 <= int(value) <= MOST_OF["num_hidden_layers"]:
            raise ModelError(f"{folder}/config.json: {name} is {value}, not from 1 to 4,096")
    if family != "bart":
        return
    for name in ("attention_heads", "ffn_dim"):
        if config[f"encoder_{name}"] != config[f"decoder_{name}"]:
            raise ModelError(
                f"{folder}/config.json: encoder_{name} and decoder_{name} differ, and both stacks "
                "are counted alike here"
            )
    if config.get("tie_word_embeddings") is False:
        raise ModelError(
            f"{folder}/config.json: tie_word_embeddings is false, but BART's output is its input"
        )


def _encoder_decoder(family: EncoderDecoderFamily, config: dict[str, Any], *, tied: bool) -> Shape:
    width = int(config["d_model"])
    if family == "t5":
        heads, layers = int(config["num_heads"]), int(config["num_layers"])
        decoder_layers = int(config.get("num_decoder_layers") or layers)
        inner, head_dim = int(config["d_ff"]), int(config["d_kv"])
        positions, dropout = ANY_LENGTH, float(config.get("dropout_rate", 0.1))
    else:
        heads, layers = int(config["encoder_attention_heads"]), int(config["encoder_layers"])
        decoder_layers = int(config["decoder_layers"])
        inner, head_dim = int(config["encoder_ffn_dim"]), width // heads
        positions = int(config["max_position_embeddings"])
        dropout = float(config.get("dropout", 0.1))
    return Shape(
        family=family,
        vocab_size=int(config["vocab_size"]),
        hidden_size=width,
        intermediate_size=inner,
        head_dim=head_dim,
        num_hidden_layers=layers,
        num_decoder_layers=decoder_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        dropout=dropout,
        head="seq2seq",
        gated=str(config.get("feed_forward_proj", "relu")).startswith("gated"),
        relative_attention_num_buckets=int(config.get("relative_attention_num_buckets", 32)),
    )


def _dropout(family: EncoderFamily, config: dict[str, Any]) -> float:
    name, default = {
        "distilbert": ("dropout", 0.1),
        "modernbert": ("mlp_dropout", 0.0),
    }.get(family, ("hidden_dropout_prob", 0.1))
    return float(config.get(name, default) or 0.0)


def vocab_size_of_tokenizer(path: Path) -> int | None:
    """One more than the largest id of a tokenizer.json, or of GPT-2's older vocab.json.

    None where there is neither to read. The tokenizer's own reader is asked when the data is
    prepared; this is for plans before that.
    """
    path = path.expanduser()
    files = [path / "tokenizer.json", path / "vocab.json"] if path.is_dir() else [path]
    try:
        file = next((f for f in files if f.is_file()), files[0])
        content = _json(file, limit_bytes=1 << 30)
        if file.name == "vocab.json":
            content = {"model": {"vocab": content}}
        vocab = content["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        ids += [token["id"] for token in content.get("added_tokens", [])]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return max(ids) + 1
