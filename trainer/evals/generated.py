"""What a model answers, and scores of it: by transformers' own `generate`, in batches.

Shapes: R prompts of a batch, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.errors import Refused
from trainer.evals.asked import Asked
from trainer.evals.drawn import Draw, Drawing
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.exact_match import ExactMatch
from trainer.evals.metrics.rouge import Rouge
from trainer.evals.metrics.translation import Bleu, Chrf
from trainer.models.prefill import prefilled

_SCORES: dict[str, Callable[[], Any]] = {
    "bleu": Bleu,
    "chrf": Chrf,
    "rouge": Rouge,
    "exact_match": ExactMatch,
}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are made. `beams` 1: the likeliest token each time; `draw`: by chance instead."""

    max_new_tokens: int
    beams: int = 1
    draw: Draw | None = None
    batch_size: int = 8
    ends: Collection[int]  # ids that end an answer
    padding_id: int


def scores_named(names: Sequence[str]) -> dict[str, Running]:
    """Raises: Refused for a name that there is not, or a library that is not installed."""
    unknown = [name for name in names if name not in _SCORES]
    if unknown or not names:
        what = ", ".join(unknown) or "nothing"
        raise Refused(f"--scores {what}: there is {', '.join(_SCORES)}")
    running = {name: Running(_SCORES[name]()) for name in names}
    for one in running.values():
        one.metric.sums_of("a", ["a"])  # a missing library is told before anything is generated
    return running


def values_of(scores: dict[str, Running]) -> dict[str, float]:
    """F1 is what ROUGE's names stand for; precision and recall are left out."""
    found = {name: value for one in scores.values() for name, value in one.value().items()}
    return {k: v for k, v in found.items() if not k.endswith(("_precision", "_recall"))}


def room_for(asked: Sequence[Asked], *, positions: int, decoding: Decoding) -> list[Asked]:
    """Those whose prompt and longest answer the model has positions for."""
    most = positions - decoding.max_new_tokens
    return [one for one in asked if len(one.prompt) <= most]


@torch.no_grad()
def answers(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding
) -> Iterator[tuple[int, list[int]]]:
    """(number of the prompt, ids of its answer without its end), the longest prompts first: what
    does not fit into memory fails at once, and a batch has little padding.

    `model`: one of trainer/models that generates, which stays as it is.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for begin in range(0, len(order), decoding.batch_size):
        chosen = order[begin : begin + decoding.batch_size]
        draw = decoding.draw
        drawing = [Drawing(draw, [draw.seeds[i] for i in chosen])] if draw is not None else []
        said = _batch(model, [prompts[i] for i in chosen], decoding, drawing=drawing)
        yield from zip(chosen, said, strict=True)


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, *, drawing: list[Drawing]
) -> list[list[int]]:
    """A decoder goes on at the right end, so padding stands on the left, out of its sight; an
    encoder-decoder's source has it on the right, where it had it in training.
    """
    two_stacks = bool(model.hf.config.is_encoder_decoder)
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    inputs_RT = torch.full((len(prompts), longest), decoding.padding_id)
    mask_RT = torch.zeros_like(inputs_RT)
    for row, prompt in enumerate(prompts):
        begin = 0 if two_stacks else longest - len(prompt)
        inputs_RT[row, begin : begin + len(prompt)] = torch.tensor(prompt)
        mask_RT[row, begin : begin + len(prompt)] = 1
    inputs_RT, mask_RT = inputs_RT.to(device), mask_RT.to(device)
    said_RT = model.hf.generate(
        inputs_RT,
        attention_mask=mask_RT,
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        do_sample=False,  # drawn tokens are the only ones that `drawing` leaves
        logits_processor=drawing,
        # A folder's generation_config.json may ask for sampling, which would be warned about.
        temperature=None,
        top_k=None,
        top_p=None,
        eos_token_id=sorted(decoding.ends),
        pad_token_id=decoding.padding_id,
        use_cache=True,
        **prefilled(model, inputs_RT, mask_RT, copies=decoding.beams),
    )
    # What a decoder was given comes first: the prompt, or an encoder-decoder's start.
    given = 1 if two_stacks else longest
    return [_until_end(ids, decoding.ends) for ids in said_RT[:, given:].tolist()]


def _until_end(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    stop = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])
