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


# --- what layers keep for the backward ------------------------------------------------------------

# Bytes of a position of the layer's own stack, measured by autograd's hooks: for each of width,
# heads' width and inner, for each head and key of the own stack (T5 adds its bias to the mask), for
# each key (BART widens the mask), for each head, and alone. Of the cross-attention: for each head
# and position of the source, for each position of the source; and of a position of the source, its
# keys and values, and its copy. All by precision.
_Kept = tuple[int, int, int, int, int, int, int]
_OWN: Final[dict[str, dict[str, _Kept]]] = {
    "t5": {
        "fp32": (24, 16, 4, 4, 0, 0, 8),
        "bf16": (20, 14, 2, 4, 0, 0, 8),
        "autocast": (24, 14, 4, 4, 0, 0, 8),
    },
    "gated": {
        "fp32": (24, 16, 28, 4, 0, 0, 8),
        "bf16": (20, 14, 14, 4, 0, 0, 8),
        "autocast": (26, 14, 14, 4, 0, 0, 8),
    },
    "bart": {
        "fp32": (32, 0, 8, 0, 4, 4, 16),
        "bf16": (16, 0, 4, 0, 2, 4, 8),
        "autocast": (24, 0, 4, 0, 2, 4, 16),
    },
}
# More, of a decoder's position: width, heads' width, each head, alone, each head and position of
# the source, each position of the source; of a source's position: heads' width, width.
_CROSS: Final[dict[str, dict[str, tuple[int, int, int, int, int, int, int, int]]]] = {
    "t5": {
        "fp32": (12, 8, 4, 4, 4, 0, 8, 0),
        "bf16": (10, 4, 4, 4, 2, 0, 4, 0),
        "autocast": (10, 4, 4, 4, 2, 0, 4, 4),
    },
    "bart": {
        "fp32": (16, 0, 4, 8, 0, 4, 0, 8),
        "bf16": (8, 0, 4, 4, 0, 2, 0, 4),
        "autocast": (10, 0, 4, 8, 0, 2, 0, 8),
    },
}


def layer_bytes(
    family: str, precision: str, *, width: int, inner: int, heads: int, head_dim: int, gated: bool,
    own: int, source: int = 0,
) -> int:  # fmt: skip
    """Of one layer and one row of `own` positions; of a decoder's with `source` of the source."""
    heads_width = heads * head_dim
    d, i, f, per_head_key, per_key, per_head, alone = _OWN["gated" if gated else family][precision]
    of_one = d * width + i * heads_width + f * inner + per_head * heads + alone
    total = own * (of_one + own * (per_head_key * heads + per_key))
    if not source:
        return total
    d, i, per_head, alone, per_head_key, per_key, read_i, read_d = _CROSS[family][precision]
    of_one = d * width + i * heads_width + per_head * heads + alone
    total += own * (of_one + source * (per_head_key * heads + per_key))
    return total + source * (read_i * heads_width + read_d * width)
