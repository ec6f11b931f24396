"""What the head is said to hold, against what torch's allocator gave out."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from trainer.capacity.head import BLOCK_ELEMENTS, head_bytes
from trainer.capacity.memory import Precision
from trainer.models.head import Head

_TOKENS, _VOCAB = 1024, 4096


def _allocated_at_most(act: Any) -> int:
    """The largest sum of bytes given out and not yet taken back while `act()` runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        act()
    events: Any = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


# Rows of 16: logits are most of it; of 256: the gradient of the weight is. Not 32 tokens of 256:
# torch 2.13 multiplies so few of them in bf16 with an fp32 copy of the result, on CPUs.
@pytest.mark.parametrize(("chunk", "width"), [(0, 16), (0, 256), (32, 16), (512, 16), (512, 256)])
@pytest.mark.parametrize("precision", [p for p in get_args(Precision) if p != "fp16"])
def test_the_head_holds_what_is_said(precision: Any, chunk: int, width: int) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    hidden = torch.randn(_TOKENS, width).to(dtype).requires_grad_()
    head = Head(nn.Parameter(torch.randn(_VOCAB, width).to(dtype)), chunk_tokens=chunk)
    labels = torch.randint(_VOCAB, (_TOKENS,))

    def both() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
            loss = head(hidden, labels).sum()
        loss.backward()

    both()  # what is made once stays out of it
    hidden.grad = head.weight.grad = None
    measured = _allocated_at_most(both)
    if precision == "autocast":  # its 16-bit copy of the weight is counted as a parameter
        measured -= 2 * _VOCAB * width
    said = head_bytes(
        _TOKENS,
        _VOCAB,
        hidden_size=width,
        precision=precision,
        chunk_tokens=chunk,
        block_elements=BLOCK_ELEMENTS["cpu"],
    )
    assert measured == pytest.approx(said, rel=0.01)  # 0.03 to 0.3 %: some numbers a token


def test_a_logit_that_is_kept_costs_two_bytes_and_two_for_its_gradient() -> None:
    """Not four more for each: fp32 exists for a block alone, however many tokens there are."""

    def said(tokens: int) -> int:
        return head_bytes(
            tokens,
            128_256,
            hidden_size=4096,
            precision="bf16",
            chunk_tokens=0,
            block_elements=BLOCK_ELEMENTS["cuda"],
        )

    more = (said(8192) - said(4096)) / 4096
    assert more == 4 * 128_256 + 2 * 4096
