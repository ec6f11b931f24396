"""The engine: stores, shards, reduces and updates parameters. Five verbs and what they mean.

A step's gradient is the plain SUM, over all ranks and micro-steps, of the gradients of the losses
given to `accumulate`. The caller divides by the step's weight; adapters undo what vendors average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from trainer.records.fragment import Fragment


@dataclass(frozen=True)
class StepStats:
    """`grad_norm`: L2 norm over all parameters and ranks, before clipping.

    A gradient that is not finite is never applied; the norm says so (inf or nan). Only under a
    loss scale is that expected now and then: `overflowed`, and the scale was lowered.
    """

    grad_norm: float
    applied: bool  # False: parameters, moments and counters are those before the step
    overflowed: bool = False


@dataclass(frozen=True)
class HeldFragment:
    """A fragment and this rank's live values of it: fp32, 1-D, `fragment.length` elements.

    Good until the next fragment is asked for: values swapped to a disk give up their memory then.
    """

    fragment: Fragment
    values: torch.Tensor


class FragmentSource(Protocol):
    """Anything that can fill ranges of logical tensors: a checkpoint, a folder, an initialiser."""

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Fill `out` (fp32, 1-D, CPU or device) with elements [start, stop) of the tensor.

        A source that has no moments (an initialiser, a pretrained folder) fills them with 0.
        Raises: CheckpointError or ModelError if the tensor is missing or has another shape.
        """


Wanted = tuple[Fragment, torch.Tensor]


@runtime_checkable
class ReadsTogether(Protocol):
    """A source that is faster when it knows what will be asked next, as a disk is."""

    def read_all(self, wanted: Sequence[Wanted]) -> None:
        """As `read` for each. Nothing may be used before it returns, or if it raises."""


def read_all(source: FragmentSource, wanted: Sequence[Wanted]) -> None:
    """Fill all of them, at once where the source can."""
    if isinstance(source, ReadsTogether):
        source.read_all(wanted)
        return
    for fragment, out in wanted:
        source.read(fragment, out)


def always(grad_norm: float) -> bool:
    """The answer of a caller that takes every step."""
    return True


def set_rates(optimizer: torch.optim.Optimizer, lr: float, *, number: int | None = None) -> None:
    """The rates of an update: `lr` scaled by each group's `lr_scale`, 0 before its `open_at`.

    At a rate of 0 no optimizer here changes a parameter, by decay neither; its moments go on.
    """
    for group in optimizer.param_groups:
        is_open = number is None or number >= group.get("open_at", 0)
        group["lr"] = lr * group.get("lr_scale", 1.0) if is_open else 0.0


class Engine(Protocol):
    """Collective: every rank calls `accumulate`, `step` and `load` in the same order."""

    device: torch.device

    @property
    def model(self) -> torch.nn.Module:
        """What the task calls. Under ZeRO its parameters may be gathered on the fly."""

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        """Backward of one micro-step's loss; `last` marks the step's last one."""

    def step(
        self,
        *,
        lr: float,
        number: int | None = None,
        apply_if: Callable[[float], bool] = always,
    ) -> StepStats:
        """Reduce, clip, update with learning rate `lr`; gradients are zero afterwards.

        Parameter groups with a `lr_scale` multiply `lr` by it; those that `open_at` a later step
        than `number` stay as they are (None: all are open). `apply_if` is asked with the
        gradient norm, if that is finite; all ranks must answer alike. If not, nothing is applied.
        """

    def fragments(self) -> Iterator[HeldFragment]:
        """What this rank must save: over all ranks every element of master and moments once."""

    def load(self, source: FragmentSource, *, step: int) -> None:
        """Fill all this rank holds; `step` updates were applied so far (Adam's bias correction)."""

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """Names and whole shapes of all trained parameters, in the model's order."""

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the model computes with the average of its weights, if the engine keeps one;
        nothing is trained, saved or loaded there. Collective to enter and to leave."""

    def replicated(self) -> Sequence[tuple[str, torch.Tensor]]:
        """Live weights that every rank holds whole and alike between steps, in the model's order.

        Empty where a rank is alone or shares all of them out.
        """

    def close(self) -> None:
        """Give back what the vendor holds. Not collective."""
