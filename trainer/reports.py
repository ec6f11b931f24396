"""What the loop tells observers: frozen values, no behaviour. Numbers are the whole world's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step. Units: seconds, bytes, tokens."""

    step: int
    loss: float  # mean over the step's terms, all ranks
    learning_rate: float
    grad_norm: float  # before clipping
    applied: bool  # False: the engine skipped the update (fp16 overflow)
    terms: int  # target tokens that counted (trainable tokens)
    tokens: int  # tokens that are not padding (effective tokens)
    row_tokens: int  # rows x sequence_length, padding included
    tokens_seen: int  # effective tokens since step 1, this step included
    step_s: float  # whole step on this rank, data wait included
    data_s: float  # waiting for the stream
    forward_s: float
    backward_s: float
    update_s: float  # reduce, clip, optimizer
    tokens_per_second: float  # effective tokens, world
    mfu: float  # flops_per_token x tokens / (step_s x peak x world_size)
    memory_bytes: int  # peak on this rank: device memory, or resident set on CPU
    skipped: int = 0  # steps of the run so far that the numerics guard left out


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One evaluation. Names in `values` are what metrics.jsonl holds, prefixed `eval_`."""

    step: int
    values: dict[str, float]
    seconds: float
    samples: tuple[tuple[str, str], ...] = field(default=())  # (prompt, continuation)


@dataclass(frozen=True, kw_only=True)
class SaveReport:
    """One save. `stall_s`: how long training stood still, in `begin` and `finish` together.

    `waited_s`: the part of it that went by until a staging buffer was free. `write_s`: from the
    beginning until the step was durable; nobody waits for it if saves are asynchronous.
    `skipped`: not tried, for the saves before were not done (checkpoint.when_busy=skip).
    `save_every`: steps to the next one, if that is chosen (steps.save_every=auto), and why it has
    changed. `memory`: how the states in memory stand, if any are kept.
    """

    step: int
    succeeded: bool
    stall_s: float
    bytes: int
    path: str
    problem: str = ""
    waited_s: float = 0.0
    write_s: float = 0.0
    skipped: bool = False
    save_every: int = 0
    save_every_why: str = ""
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class UploadReport:
    """A saved step's copy to another place. `bytes`: of the step. Nobody waits the `seconds`.

    `skipped`: steps of this attempt that were due and left out, one before being under way.
    """

    step: int
    succeeded: bool
    bytes: int
    seconds: float
    url: str
    problem: str = ""
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """A step whose numbers cannot be right, or the way back past some (trainer/remedy.py)."""

    step: int
    action: Literal["log", "skip", "rewind"]
    kind: Literal["non_finite", "spike"]
    said: str
    loss: float | None
    grad_norm: float | None
    skipped: int  # steps so far
    samples: tuple[int, int]  # [start, stop): of the step; of a way back: left out from now on
    to_step: int | None = None  # of a way back: training goes on after this step
