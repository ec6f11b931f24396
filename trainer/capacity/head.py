"""Bytes of the loss head at its worst moment, its backward, beside its weight and its input.

Counted from trainer/models/head.py, `_LogProbs`; tests/contract/test_head_memory.py holds the
figures against torch's allocator. N tokens of a micro-batch, C of them at a time, V vocabulary, D
hidden size; c bytes of what products are computed in, h of a hidden state; B one fp32 block of
logits, with k of them at a time: the gradient, the block's before if there are several, and of
16-bit logits the widened ones. In brackets: under autocast only.

    all at once   2 c N V + h N D [+ c N D] + max(k B, c N D, c V D [+ 4 V D])
    in chunks     h N D + 4 V D [+ c C D] + c C V + max(c C V, k B, c C D, c V D unless fp32)

All at once: the logits that were kept and their gradient; then the product that is the gradient of
the hidden states, or the weight's. In chunks: the weight's gradient is added up in fp32, and a
chunk's logits live until the next one's are made. Left out: some numbers a token, the bias.
"""

from __future__ import annotations

from typing import Final, Literal

# Logits that are widened to fp32 at a time: what stays in a CPU's cache, or keeps a GPU busy.
BLOCK_ELEMENTS: Final = {"cpu": 1 << 19, "cuda": 1 << 24}


def head_bytes(
    tokens: int,
    vocab_size: int,
    *,
    hidden_size: int,
    precision: Literal["fp32", "bf16", "autocast", "fp16"],
    chunk_tokens: int,
    block_elements: int,
) -> int:
    """`tokens` of a micro-batch. `chunk_tokens`: logits at a time; 0: all."""
    is_cast, is_wide = precision == "autocast", precision == "fp32"
    compute, hidden = (4 if is_wide else 2), (4 if is_wide or is_cast else 2)
    at_a_time = min(chunk_tokens or tokens, tokens)
    logits = compute * at_a_time * vocab_size
    inputs = compute * at_a_time * hidden_size
    weight = vocab_size * hidden_size
    rows = min(max(1, block_elements // vocab_size), at_a_time)
    at_once = (1 if is_wide else 2) + (1 if rows < at_a_time else 0)
    blocks = 4 * at_once * rows * vocab_size
    held = hidden * tokens * hidden_size + (inputs if is_cast else 0)
    if at_a_time == tokens:
        made = compute * weight + (4 * weight if is_cast else 0)
        return held + 2 * logits + max(blocks, inputs, made)
    product = 0 if is_wide else compute * weight
    return held + 4 * weight + logits + max(logits, blocks, inputs, product)
