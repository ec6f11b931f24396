"""How likely a model finds each of several answers, without writing any.

Shapes: R rows of a batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batch import IGNORED
from trainer.objectives.prefix_lm import prompts_of


@dataclass(frozen=True)
class Continuation:
    """Token ids; `prompt` has at least one."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def continuation(encode: Callable[[str], list[int]], prompt: str, answer: str) -> Continuation:
    """Text -> ids, the whole at once, as in training: the cut is where the prompt alone ends.

    Spaces at the prompt's end belong to the answer, as tokenizers have them. Where tokens reach
    over the cut, the answer begins within one; that is how lm-evaluation-harness cuts too.
    """
    bare = prompt.rstrip(" ")
    whole, before = encode(prompt + answer), encode(bare)
    cut = min(len(before), len(whole) - 1)
    return Continuation(tuple(whole[:cut]), tuple(whole[cut:]))


@torch.no_grad()
def log_likelihoods(
    model: Any, asked: Sequence[Continuation], *, batch_size: int
) -> Iterator[tuple[int, float]]:
    """(number, sum of the log-probabilities of the answer's tokens in nats), the longest first.

    `model`: a causal one of trainer/models. Padding stands on the right, where nothing sees it.
    """
    order = sorted(range(len(asked)), key=lambda i: _length(asked[i]), reverse=True)
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        yield from zip(chosen, _batch(model, [asked[i] for i in chosen]), strict=True)


def _batch(model: Any, asked: Sequence[Continuation]) -> list[float]:
    device = next(model.parameters()).device
    longest = max(_length(one) for one in asked) - 1  # nothing follows the last token
    inputs_RT = torch.zeros(len(asked), longest, dtype=torch.long)
    labels_RT = torch.full_like(inputs_RT, IGNORED)
    for row, one in enumerate(asked):
        ids = torch.tensor([*one.prompt, *one.answer])
        inputs_RT[row, : len(ids) - 1] = ids[:-1]
        labels_RT[row, len(one.prompt) - 1 : len(ids) - 1] = ids[len(one.prompt) :]
    positions_RT = torch.arange(longest).expand_as(inputs_RT)
    given = {}
    if model.reads_prompts_whole:
        given["prompts_RT"] = prompts_of(labels_RT, positions_RT).to(device)
    log_probs_RT, _ = model(
        inputs_RT.to(device), positions_RT.to(device), labels_RT.to(device), want="scores", **given
    )
    sums: list[float] = log_probs_RT.double().sum(-1).tolist()
    return sums


def _length(one: Continuation) -> int:
    return len(one.prompt) + len(one.answer)
