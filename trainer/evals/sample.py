"""A text the model continues, to look at when training ends."""

from __future__ import annotations

import time

import torch

from trainer.data.tokenizer import TextTokenizer
from trainer.dist.seeds import seed_of
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.reports import EvalReport

_TEMPERATURE = 0.8
_TOP_K = 40


class Sample:
    """Runs at the last step only. No cache of keys and values: meant for a few hundred tokens.

    Every rank makes the same tokens, because under ZeRO-3 all of them take part in each forward;
    their number is fixed for the same reason, and what follows the end of text is cut off.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        prompt: str,
        num_tokens: int,
        max_positions: int,
        seed: int,
    ) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._prompt_ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
        self._num_tokens = num_tokens
        self._max_positions = max_positions
        self._seed = seed

    def due(self, step: int) -> bool:
        return False

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        """Collective."""
        started = time.perf_counter()
        model = engine.model
        was_training = model.training
        model.eval()
        try:
            made = self._continue(engine, step)
        finally:
            model.train(was_training)
        end = self._tokenizer.end_of_text_id
        text = self._tokenizer.decode(made[: made.index(end)] if end in made else made)
        seconds = time.perf_counter() - started
        return EvalReport(step=step, values={}, seconds=seconds, samples=((self._prompt, text),))

    @torch.no_grad()
    def _continue(self, engine: Engine, step: int) -> list[int]:
        """Shapes: T positions so far, V vocabulary, K candidates."""
        generator = torch.Generator().manual_seed(seed_of("sample", self._seed, step))
        ids = list(self._prompt_ids)
        for _ in range(self._num_tokens):
            seen = torch.tensor(ids[-self._max_positions :], device=engine.device)
            positions = torch.arange(len(seen), device=engine.device)
            logits_1TV = engine.model(seen[None], positions[None], want="logits")
            top = torch.topk(logits_1TV[0, -1].float().cpu(), min(_TOP_K, logits_1TV.shape[-1]))
            chances_K = torch.softmax(top.values / _TEMPERATURE, dim=-1)
            drawn = torch.multinomial(chances_K, 1, generator=generator)
            ids.append(int(top.indices[drawn]))
        return ids[len(self._prompt_ids) :]
