"""Engine, precision and optimizer: which go together. Measured with DeepSpeed 0.19.8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from trainer.config.schema import Config
from trainer.config.sections.training import (
    CanonicalEngine,
    DeepSpeedEngine,
    Optimizer,
    PrecisionSection,
)
from trainer.errors import Problem


def engine_problems(config: Config, *, device: Literal["cpu", "cuda"] | None) -> list[Problem]:
    """`device` None: not known yet, so that only what is wrong anywhere is reported."""
    found = [*_attention_problems(config, device)]
    if isinstance(config.engine, DeepSpeedEngine):
        found += deepspeed_problems(
            config.engine, config.precision, optimizer=config.optimizer, device=device
        )
    else:
        found += _device_problems(config.precision, device)
        found += _loss_scale_problems(config.precision)
        if isinstance(config.engine, CanonicalEngine):
            found += _canonical_problems(config, device)
        else:
            found += _plain_problems(config)
    return found


def deepspeed_problems(
    engine: DeepSpeedEngine,
    precision: PrecisionSection,
    *,
    optimizer: Optimizer,
    device: Literal["cpu", "cuda"] | None,
) -> list[Problem]:
    """What DeepSpeed refuses, or does wrongly without a word."""
    return [
        *_device_problems(precision, device),
        *_precision_problems(precision, engine),
        *_offload_problems(engine),
        *_muon_problems(optimizer, engine),
    ]


def _device_problems(precision: PrecisionSection, device: str | None) -> Iterator[Problem]:
    if device == "cpu" and precision.kind == "fp16":
        what = "fp16 runs on GPUs only: neither torch nor DeepSpeed has fp16 arithmetic for CPUs"
        yield Problem("precision.kind", what, "precision=bf16")


def _attention_problems(config: Config, device: str | None) -> Iterator[Problem]:
    if device == "cpu" and config.model.attention == "flash_attention_2":
        what = "flash_attention_2 runs on GPUs only"
        yield Problem("model.attention", what, "model.attention=sdpa")


def _plain_problems(config: Config) -> Iterator[Problem]:
    world = config.resources.nodes * config.resources.ranks_per_node
    if world > 1:
        what = f"the plain engine is one process, not {world} ranks"
        fix = "resources.ranks_per_node=1"
        fix += " resources.nodes=1" if config.resources.nodes > 1 else ""
        yield Problem("engine.kind", what, f"engine=zero1, or {fix}")


def _loss_scale_problems(precision: PrecisionSection) -> Iterator[Problem]:
    if precision.kind == "fp16":
        what = "fp16 needs a loss scale, which only the DeepSpeed engines have"
        yield Problem("precision.kind", what, "precision=bf16")


def _canonical_problems(config: Config, device: str | None) -> Iterator[Problem]:
    """What would let the number of ranks into the bits."""
    threads = config.resources.threads_per_rank
    if device != "cuda" and threads > 1:
        what = (
            f"products of matrices add up in another order on {threads} threads, so that ranks of "
            "another number would not repeat them; the canonical engine takes one"
        )
        yield Problem("resources.threads_per_rank", what, "resources.threads_per_rank=1")
    if config.optimizer.kind == "muon":
        what = "Muon works on whole matrices; the canonical engine shares them out in slices"
        yield Problem("optimizer.kind", what, "optimizer=adamw")
    if config.precision.kind == "bf16" and config.precision.accumulate_in == "weights":
        what = "the canonical engine adds micro-batches up in fp32 only"
        yield Problem("precision.accumulate_in", what, "precision.accumulate_in=fp32")


def _precision_problems(precision: PrecisionSection, engine: DeepSpeedEngine) -> Iterator[Problem]:
    if engine.stage == 0 and precision.kind in ("bf16", "fp16"):
        # Losses were off by 6e-4 after 6 steps, three times as much as with stage 1.
        what = (
            f"stage 0 with {precision.kind} weights loses accuracy; stage 1 costs no more "
            "and keeps fp32 masters"
        )
        yield Problem("engine.stage", what, "engine=zero1")


def _offload_problems(engine: DeepSpeedEngine) -> Iterator[Problem]:
    optimizer, parameters = engine.offload_optimizer, engine.offload_parameters
    if optimizer != "none" and engine.stage == 0:
        what = "offloading needs sharded optimizer states, which stage 0 has not"
        yield Problem("engine.offload_optimizer", what, "engine=zero2 engine.offload_optimizer=cpu")
    if optimizer == "nvme" and engine.stage in (1, 2):
        what = f"nvme needs stage 3; stage {engine.stage} can offload to cpu"
        yield Problem("engine.offload_optimizer", what, "engine.offload_optimizer=cpu")
    if parameters != "none" and engine.stage != 3:
        what = f"only stage 3 can offload parameters, not stage {engine.stage}"
        yield Problem("engine.offload_parameters", what, "engine=zero3_offload_cpu")
    if "nvme" in (optimizer, parameters) and not engine.nvme_path:
        what = "offloading to nvme needs a folder on a local disk"
        yield Problem("engine.nvme_path", what, "engine.nvme_path=/local/scratch")


def _muon_problems(optimizer: Optimizer, engine: DeepSpeedEngine) -> Iterator[Problem]:
    if optimizer.kind == "muon" and engine.offload_optimizer == "nvme":
        what = "Muon does not run with its state on nvme"
        yield Problem("engine.offload_optimizer", what, "engine.offload_optimizer=cpu")
