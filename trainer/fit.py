"""Which ZeRO stage, micro-batch and activation checkpointing fit a memory: a search, pure.

Among what fits, the fastest by a rough cost a token, in units of one pass at full speed:

    (1 + c/3) x traffic(stage) x (1 + 512 / tokens of a micro-batch)

c is 1 with activation checkpointing: the forward runs once more, a third of all work (Korthikanti
et al. 2022, sec. 5). ZeRO-3 moves 1.5 times the bytes of the others (Rajbhandari et al. 2020,
sec. 7); a tenth of that is taken to be seen. 512 tokens: where small matrix products and launches
begin to show. The constants order choices; they predict no speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trainer.capacity.memory import Memory, memory_per_rank
from trainer.capacity.shape import Shape
from trainer.config import rules
from trainer.config.schema import Config
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import Refused
from trainer.planning import layout_of, micro_batch_of, shape_of
from trainer.records.sizes import size_text

TRAFFIC = {1: 1.0, 2: 1.02, 3: 1.15}
USABLE = 0.9  # of the memory: contexts, libraries and fragmentation are not in the estimate
OFFLOAD = 3.0  # states travel over the bus each step: only when nothing else fits


@dataclass(frozen=True)
class Fit:
    """`overrides` to add to the command line; `memory` is what they lead to."""

    overrides: tuple[str, ...]
    memory: Memory
    config: Config


def fit(
    config: Config,
    budget_bytes: int,
    *,
    device: Literal["cpu", "cuda"],
    vocab_size_of_tokenizer: int | None = None,
    engines: dict[str, DeepSpeedEngine],
) -> Fit:
    """The fastest layout in `USABLE` of `budget_bytes` a rank. `engines`: choice -> its section.

    Raises: Refused if nothing fits, with the least that was found; ConfigError for a bad model.
    """
    shape = shape_of(config, vocab_size_of_tokenizer=vocab_size_of_tokenizer)
    tried = [
        (_cost(candidate), name, candidate, _memory(candidate, shape, device=device))
        for name, candidate in _candidates(config, engines)
    ]
    needs = [_needed(memory, device) for *_, memory in tried]
    fitting = [t for t, need in zip(tried, needs, strict=True) if need <= USABLE * budget_bytes]
    if not fitting:
        raise Refused(_nothing_fits(config, budget_bytes, least=needs))
    _, name, best, memory = min(fitting, key=lambda t: (t[0], t[3].total))
    checkpointing = str(best.model.activation_checkpointing).lower()
    overrides = (
        f"engine={name}",
        f"batch.micro_batch_size={best.batch.micro_batch_size}",
        f"model.activation_checkpointing={checkpointing}",
    )
    return Fit(overrides, memory, best)


def _candidates(
    config: Config, engines: dict[str, DeepSpeedEngine]
) -> Iterator[tuple[str, Config]]:
    share = -(-config.batch.global_batch_size // rules.world_size(config))
    for name, engine in engines.items():
        for rows in (r for r in range(1, share + 1) if share % r == 0):
            for checkpointing in (False, True):
                model = {"activation_checkpointing": checkpointing}
                changed = {
                    "engine": engine,
                    "batch": config.batch.model_copy(update={"micro_batch_size": rows}),
                    "model": config.model.model_copy(update=model),
                }
                candidate = config.model_copy(update=changed)
                if not rules.problems(candidate):
                    yield name, candidate


def _cost(config: Config) -> float:
    assert isinstance(config.engine, DeepSpeedEngine)
    tokens = config.batch.micro_batch_size * config.data.sequence_length
    again = 4 / 3 if config.model.activation_checkpointing else 1.0
    offload = OFFLOAD if config.engine.offload_optimizer != "none" else 1.0
    return again * TRAFFIC[config.engine.stage] * offload * (1 + 512 / tokens)


def _memory(config: Config, shape: Shape, *, device: Literal["cpu", "cuda"]) -> Memory:
    layout = layout_of(config, rules.world_size(config))
    return memory_per_rank(shape, layout, batch=micro_batch_of(config, device=device))


def _needed(memory: Memory, device: Literal["cpu", "cuda"]) -> int:
    """On a CPU the host is the device: what is offloaded to it frees nothing."""
    beside = memory.host + memory.staging + memory.kept
    return memory.total + (beside if device == "cpu" else 0)


def _nothing_fits(config: Config, budget: int, *, least: list[int]) -> str:
    world = rules.world_size(config)
    text = f"--fit: nothing fits {size_text(budget)} a rank on {world} ranks"
    if least:
        text += f"; the least is {size_text(min(least) / USABLE)}, a tenth of it left free"
    return f"{text}. Take more ranks, shorter rows (data.sequence_length) or a smaller model"
