"""The same bits on any number of ranks: sums are taken in an order that the ranks have no part in.

    virtual shard    k = 0 .. V-1: one micro-batch of the global batch, V = ceil(B / b)
    who makes it     rank k mod W, in micro-step k div W (how trainer/data/stream.py numbers rows)
    who adds it      each rank, for its slice of the flat parameters, in the order of k
    whose norm       squares of blocks that do not depend on W, added in the order of blocks
    who updates      each rank its slice, element by element; then all get all slices

In micro-step m the owner of a slice is sent the shards mW .. mW + W - 1 in the order of ranks, so
a running sum is enough. Memory of a rank: weights and one gradient in their format, 1/W of sum,
masters and moments in fp32, two buckets. What it rests on: micro-batches of one size, one CPU
thread a rank (products of matrices add in another order on two), and one kind of device.

The loss that is shown is no part of this: ranks add it up in fp64, and its 16th digit may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn

from trainer.config.sections.regularize import EmaSection
from trainer.config.sections.training import CanonicalEngine as EngineSection
from trainer.config.sections.training import PrecisionSection
from trainer.dist.world import World
from trainer.engine import fragments
from trainer.engine.base import FragmentSource, HeldFragment, StepStats, always, set_rates
from trainer.engine.flat_slices import FlatSlices, block_squares, tree_sum
from trainer.engine.model_setup import (
    MakeModel,
    MakeOptimizer,
    compute_in_bf16,
    settle,
    trained,
    weight_dtype,
)
from trainer.engine.weight_average import average_of
from trainer.errors import ConfigError, Problem
from trainer.optim.muon import Muon


class CanonicalEngine:
    """fp32, autocast, or bf16 weights. Collective: all ranks of the world build one."""

    def __init__(
        self,
        make_model: MakeModel,
        make_optimizer: MakeOptimizer,
        *,
        world: World,
        engine: EngineSection,
        precision: PrecisionSection,
        max_grad_norm: float,
        num_shards: int,
        average: EmaSection | None = None,
    ) -> None:
        """`num_shards`: V, the micro-batches that hold rows; `max_grad_norm`: 0 for no clipping.

        Raises: ConfigError for fp16 and for an optimizer that needs whole matrices.
        """
        if precision.kind == "fp16":
            raise ConfigError([_NO_FP16])
        self.device = world.device
        self._rank, self._size = world.place.rank, world.place.world_size
        self._max_grad_norm = max_grad_norm or math.inf
        self._num_shards, self._next_shard = num_shards, 0
        self._model = make_model()
        dtype = weight_dtype(precision.kind)
        settle(self._model, dtype=dtype, device=self.device)
        if precision.kind == "autocast":
            compute_in_bf16(self._model, self.device)
        self._weights = trained(self._model)
        self._optimizer = make_optimizer(self._weights)
        if isinstance(self._optimizer, Muon):
            raise ConfigError([_NO_MUON])
        names = {id(p): name for name, p in self._weights}
        groups = [[(names[id(p)], p) for p in g["params"]] for g in self._optimizer.param_groups]
        self._flat = FlatSlices(groups, rank=self._rank, world_size=self._size)
        self._masters = torch.zeros(self._flat.slice, device=self.device)
        self._sum = torch.zeros_like(self._masters)
        self._owners = self._own_slice()
        self._average = average_of(
            average, self._optimizer, self._owned, refresh=self._share_weights
        )
        columns = max(1, min(engine.bucket_elements // self._size, self._flat.slice))
        # A row is of, or for, one rank; collectives take fewer than all columns of it at the end.
        self._leaving, self._coming = (
            torch.empty(self._size * columns, dtype=dtype, device=self.device) for _ in range(2)
        )

    @property
    def model(self) -> nn.Module:
        return self._model

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        real = min(self._num_shards - self._next_shard, self._size)
        if real > 0:  # else no rank has a row of this micro-step
            self._exchange_gradients(real)
        self._next_shard += self._size
        for _, weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(
        self,
        *,
        lr: float,
        number: int | None = None,
        apply_if: Callable[[float], bool] = always,
    ) -> StepStats:
        set_rates(self._optimizer, lr, number=number)
        norm = self._norm()
        applied = math.isfinite(norm) and apply_if(norm)
        if applied:
            if norm > self._max_grad_norm:
                self._sum.mul_(self._max_grad_norm / norm)
            self._optimizer.step()
            self._share_weights()
            if self._average is not None:
                self._average.update()
        self._next_shard = 0
        self._sum.zero_()
        return StepStats(norm, applied)

    def fragments(self) -> Iterator[HeldFragment]:
        return fragments.held(self._flat.regions(self._owners), self._optimizer)

    @torch.no_grad()
    def load(self, source: FragmentSource, *, step: int) -> None:
        fragments.fill(self._flat.regions(self._owners), self._optimizer, source, step=step)
        if self._average is not None:
            self._average.loaded(step)
        self._share_weights()

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(p.shape)) for name, p in self._weights]

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.instead()

    def replicated(self) -> Sequence[tuple[str, torch.Tensor]]:
        return [(n, p.data) for n, p in self._weights] if self._size > 1 else []

    def close(self) -> None:
        """Nothing is held that garbage collection would not free."""

    def _owned(self) -> list[nn.Parameter]:
        return [owner for _, owner in self._owners]

    def _own_slice(self) -> list[tuple[int, nn.Parameter]]:
        """The optimizer's groups get this rank's part of them; (where in the slice, part)."""
        owners = []
        for group, (begin, end) in zip(
            self._optimizer.param_groups, self._flat.parts(), strict=True
        ):
            group["params"] = []
            if begin < end:
                owner = nn.Parameter(self._masters[begin:end])
                owner.grad = self._sum[begin:end]
                group["params"] = [owner]
                owners.append((begin, owner))
                fragments.create_moments(self._optimizer, [(owner, group)])
        return owners

    @torch.no_grad()
    def _exchange_gradients(self, real: int) -> None:
        """Add the first `real` ranks' gradients of this micro-step; the others have no rows."""
        for begin, end in self._columns():
            leaving, coming = (self._rows(b, end - begin) for b in (self._leaving, self._coming))
            for rank, row in enumerate(leaving):
                start = rank * self._flat.slice + begin
                self._flat.read(start, row, lambda p: p.grad)
            if self._size == 1:
                coming = leaving
            else:
                dist.all_to_all_single(_bytes(coming), _bytes(leaving))
            self._add(coming[:real], self._sum[begin:end])

    def _add(self, shards: torch.Tensor, total: torch.Tensor) -> None:
        """One shard after another, in fp32."""
        for number, shard in enumerate(shards, self._next_shard):
            if number == 0:  # not 0 + shard, which would turn -0.0 into 0.0
                total.copy_(shard)
            else:
                total.add_(shard)

    def _norm(self) -> float:
        """L2 norm of the whole gradient: the same bits on all ranks of all worlds."""
        squares = self._squares()
        if self._size > 1:
            dist.all_reduce(squares)  # a block's is 0 on all ranks but its owner's: exact
        return math.sqrt(tree_sum(squares).item())

    def _squares(self) -> torch.Tensor:
        """Of each block of the flat vector, 0 where another rank owns it; fp64."""
        flat = self._flat
        mine = block_squares(self._sum)
        first = self._rank * len(mine)
        squares = mine.new_zeros(self._size * len(mine))
        squares[first : first + len(mine)] = mine
        return squares[: flat.num_blocks]  # what follows is padding of the last slices

    def _share_weights(self) -> None:
        """Every rank's masters become every rank's weights."""
        for begin, end in self._columns():
            mine = self._leaving[: end - begin].copy_(self._masters[begin:end])
            rows = self._rows(self._coming, end - begin)
            if self._size == 1:
                rows = mine.view(1, -1)
            else:
                dist.all_gather_into_tensor(_bytes(rows), _bytes(mine))
            for rank, row in enumerate(rows):
                self._flat.write(rank * self._flat.slice + begin, row)

    def _columns(self) -> Iterator[tuple[int, int]]:
        """Parts [begin, end) of a slice that are sent at a time."""
        size = len(self._leaving) // self._size
        for begin in range(0, self._flat.slice, size):
            yield begin, min(begin + size, self._flat.slice)

    def _rows(self, bucket: torch.Tensor, columns: int) -> torch.Tensor:
        return bucket[: self._size * columns].view(self._size, columns)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Any format travels, with any backend."""
    return values.view(-1).view(torch.uint8)


_NO_FP16 = Problem(
    "precision.kind",
    "fp16 needs a loss scale, which only the deepspeed engines have",
    "precision=bf16",
)
_NO_MUON = Problem(
    "optimizer.kind",
    "Muon works on whole matrices; the canonical engine shares them out in slices",
    "optimizer=adamw",
)
