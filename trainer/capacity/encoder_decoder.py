"""The tensors of encoder-decoders, what a token of theirs costs, and what their layers keep.

Source: modeling_{t5,bart}.py of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from trainer.capacity.encoder import Dims, linear, norm

EncoderDecoderFamily = Literal["t5", "bart"]
ENCODER_DECODERS: tuple[EncoderDecoderFamily, ...] = ("t5", "bart")
# Positions that no token has: BART's count from 2.
_BART_OFFSET: Final = 2
# T5's positions are differences: any row will do.
ANY_LENGTH: Final = 1 << 30


def outside(
    family: str, *, vocab: int, width: int, heads: int, positions: int, buckets: int, tied: bool
) -> Iterator[tuple[str, Dims, int]]:
    """(name, shape, how many) of what is in no layer; of two where each stack has its own."""
    yield "embedding.weight", (vocab, width), 1
    if family == "t5":
        yield "position_bias.weight", (buckets, heads), 2  # each stack's first layer has it
        yield "final_norm.weight", (width,), 2
    else:
        yield "position_embedding.weight", (positions + _BART_OFFSET, width), 2
        for name, dims in norm("embedding_norm", width):
            yield name, dims, 2
    if not tied:
        yield "head.weight", (vocab, width), 1


def layer(
    family: str, *, width: int, inner: int, heads_width: int, gated: bool, crosses: bool
) -> Iterator[tuple[str, Dims]]:
    """Of one stack; `crosses`: the decoder's, which also attends to the source."""
    bias = family != "t5"
    for part in ("self", "cross") if crosses else ("self",):
        for name in ("q", "k", "v"):
            yield from linear(f"{part}.{name}", heads_width, width, bias=bias)
        yield from linear(f"{part}.o", width, heads_width, bias=bias)
        yield from norm(f"{part}.norm", width, bias=bias)
    for name in ("up", "gate") if gated else ("up",):
        yield from linear(f"mlp.{name}", inner, width, bias=bias)
    yield from linear("mlp.down", width, inner, bias=bias)
    yield from norm("mlp.norm", width, bias=bias)
