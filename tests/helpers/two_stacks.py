"""Tiny encoder-decoders."""

from __future__ import annotations

from typing import Any

from trainer.config.sections.model import EncoderDecoderShape
from trainer.models.heads import HeadSpec

SEQ2SEQ = HeadSpec("seq2seq")


def tiny_two_stacks(family: str, **changes: Any) -> EncoderDecoderShape:
    """Two layers that read, three that say, 48 wide."""
    said: dict[str, Any] = {
        "kind": "encoder_decoder", "family": family, "attention": "sdpa",
        "activation_checkpointing": False, "compile": False, "loss_chunk_tokens": 0,
        "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_decoder_layers": 3, "num_attention_heads": 3, "head_dim": 16, "pad_token_id": 0,
        "decoder_start_token_id": 0, "tie_word_embeddings": True, "initializer_range": 1.0,
        "dropout": 0.0,
    }  # fmt: skip
    if family == "t5":
        said |= {
            "gated": False, "norm_eps": 1e-6, "head_dim": 24,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        }  # fmt: skip
    else:
        said |= {"max_position_embeddings": 64}
    return EncoderDecoderShape(**(said | changes))
