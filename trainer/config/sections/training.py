"""How parameters move: optimizer, schedule, engine, precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, examples=[0.001])]


class _Optimizer(Section):
    learning_rate: Rate  # peak; the schedule scales it
    weight_decay: Annotated[float, Field(ge=0)]  # decoupled; never on biases and norms
    max_grad_norm: Annotated[float, Field(ge=0)]  # 0: no clipping


class AdamW(_Optimizer):
    kind: Literal["adamw"]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Positive


class Sgd(_Optimizer):
    kind: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)]


class Muon(_Optimizer):
    """Matrices by Muon, everything else (embeddings, head, vectors) by AdamW."""

    kind: Literal["muon"]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    adamw_learning_rate: Rate
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Positive


Optimizer = Annotated[AdamW | Sgd | Muon, Field(discriminator="kind")]


class _Schedule(Section):
    """Warm-up rises linearly from 0; give it in steps or in tokens, not both (0: none)."""

    warmup_steps: Annotated[int, Field(ge=0, examples=[0])]
    warmup_tokens: Annotated[int, Field(ge=0, examples=[0])]


class Constant(_Schedule):
    kind: Literal["constant"]


class Linear(_Schedule):
    kind: Literal["linear"]
    final_fraction: Fraction  # of the peak, at the last step


class Cosine(_Schedule):
    kind: Literal["cosine"]
    final_fraction: Fraction


class Wsd(_Schedule):
    """Warm-up, stable, decay (linear to final_fraction over the last decay_fraction of steps)."""

    kind: Literal["wsd"]
    decay_fraction: Annotated[float, Field(ge=0, le=1, examples=[0.2])]
    final_fraction: Fraction


class InverseSqrt(_Schedule):
    kind: Literal["inverse_sqrt"]


Schedule = Annotated[Constant | Linear | Cosine | Wsd | InverseSqrt, Field(discriminator="kind")]


class PlainEngine(Section):
    """One process, plain PyTorch: the reference that every other engine is held against."""

    kind: Literal["plain"]


class CanonicalEngine(Section):
    """Sums in one fixed order: the same bits for any number of ranks."""

    kind: Literal["canonical"]
    bucket_elements: Annotated[int, Field(ge=1)]  # elements sent or gathered at a time


class DeepSpeedEngine(Section):
    kind: Literal["deepspeed"]
    stage: Annotated[int, Field(ge=0, le=3)]
    offload_optimizer: Literal["none", "cpu", "nvme"]
    offload_parameters: Literal["none", "cpu", "nvme"]
    nvme_path: str | None
    overlap_communication: bool
    reduce_scatter: bool
    bucket_elements: Annotated[int, Field(ge=1)]  # elements of one reduce or all-gather bucket
    prefetch_elements: Annotated[int, Field(ge=0)]  # stage 3: parameters fetched ahead
    persistence_threshold_elements: Annotated[int, Field(ge=0)]  # stage 3: smaller ones stay whole


Engine = Annotated[PlainEngine | CanonicalEngine | DeepSpeedEngine, Field(discriminator="kind")]


class PrecisionSection(Section):
    """fp32 | bf16 (16-bit weights, fp32 master) | autocast (fp32 weights, bf16 compute) | fp16."""

    kind: Literal["fp32", "bf16", "autocast", "fp16"]
    # Where micro-batches add up: fp32 costs memory and is exact; the weights' own is cheaper.
    accumulate_in: Literal["fp32", "weights"]
