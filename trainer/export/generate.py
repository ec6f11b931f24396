"""Sampling from a loaded model by transformers' own `generate`, given out piece by piece."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trainer.data.tokenizer import TextTokenizer, streamed
from trainer.models.language_model import LanguageModel
from trainer.models.prefill import prefilled


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """`temperature` 0: greedy. `top_k` 0 and `top_p` 1: no cut."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def continued(
    model: LanguageModel, tokenizer: TextTokenizer, prompt: str, sampling: Sampling
) -> Iterator[str]:
    """The continuation of `prompt`, as whole characters, while it is made; ends at end of text."""
    return streamed(tokenizer, _token_ids(model, tokenizer, prompt, sampling))


def _token_ids(
    model: LanguageModel, tokenizer: TextTokenizer, prompt: str, sampling: Sampling
) -> Iterator[int]:
    # A document begins after the end of another: with no prompt, that token is the beginning.
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    out = _Queue(skip=1)  # the prompt comes first
    failure: list[BaseException] = []

    def work() -> None:
        try:
            torch.manual_seed(sampling.seed)
            model.hf.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampling.temperature > 0,
                temperature=sampling.temperature or None,
                top_k=(sampling.top_k or None) if sampling.temperature > 0 else None,
                top_p=sampling.top_p if sampling.temperature > 0 else None,
                eos_token_id=tokenizer.end_of_text_id,
                pad_token_id=tokenizer.end_of_text_id,
                use_cache=True,
                streamer=out,
                **prefilled(model, inputs, torch.ones_like(inputs)),
            )
        except BaseException as e:  # carried to the thread that reads
            failure.append(e)
        finally:
            out.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for token_id in out:
        if token_id == tokenizer.end_of_text_id:
            break
        yield token_id
    thread.join()
    if failure:
        raise failure[0]


class _Queue:
    """What `generate` calls a streamer: it is given token ids as they come."""

    def __init__(self, *, skip: int) -> None:
        self._queue: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._skip = skip

    def put(self, value: torch.Tensor) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._queue.put(value.flatten().tolist())

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        while (ids := self._queue.get()) is not None:
            yield from ids
