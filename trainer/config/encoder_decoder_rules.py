"""What fits together in an encoder-decoder's shape."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.sections.model import EncoderDecoderShape
from trainer.errors import Problem

# The settings that only one family has, with a value to propose.
_ONE_HAS = {
    "gated": ("t5", "false"),
    "norm_eps": ("t5", "1.0e-6"),
    "relative_attention_num_buckets": ("t5", "32"),
    "relative_attention_max_distance": ("t5", "128"),
    "max_position_embeddings": ("bart", "1024"),
}


def encoder_decoder_problems(model: EncoderDecoderShape) -> Iterator[Problem]:
    for name, (family, proposed) in _ONE_HAS.items():
        has, given = model.family == family, getattr(model, name)
        if has and given is None:
            yield Problem(f"model.{name}", f"{model.family} needs it", f"model.{name}={proposed}")
        if not has and given is not None:
            what = f"{model.family} has no such setting and would leave it unused"
            yield Problem(f"model.{name}", what, f"model.{name}=null")
    for name in ("pad_token_id", "decoder_start_token_id"):
        if 0 < model.vocab_size <= getattr(model, name):
            what = f"{getattr(model, name)} is no entry of an embedding of {model.vocab_size:,}"
            yield Problem(f"model.{name}", what, "model.vocab_size=0")
    if model.family == "bart":
        yield from _bart_problems(model)
    buckets, reach = model.relative_attention_num_buckets, model.relative_attention_max_distance
    if buckets and reach and reach <= buckets // 2:
        what = f"the last of {buckets} buckets already begins at {buckets // 2}"
        fix = f"model.relative_attention_max_distance={4 * buckets}"
        yield Problem("model.relative_attention_max_distance", what, fix)


def _bart_problems(model: EncoderDecoderShape) -> Iterator[Problem]:
    width = model.hidden_size // model.num_attention_heads
    if not model.hidden_size % model.num_attention_heads and model.head_dim != width:
        what = f"bart heads are hidden_size / num_attention_heads wide: {width}"
        yield Problem("model.head_dim", f"{what}, not {model.head_dim}", f"model.head_dim={width}")
    if not model.tie_word_embeddings:
        what = "bart's output is its embedding; transformers has none with one of its own"
        yield Problem("model.tie_word_embeddings", what, "model.tie_word_embeddings=true")
