"""DeepSpeed ZeRO behind the engine's verbs: the only importer of deepspeed.

What DeepSpeed averages is summed again here; what it hides is read in `fragments.py`. Comments
name quirks of DeepSpeed 0.19.8.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from trainer.config.sections.regularize import EmaSection
from trainer.config.sections.training import DeepSpeedEngine as EngineSection
from trainer.config.sections.training import Optimizer as OptimizerSection
from trainer.config.sections.training import PrecisionSection
from trainer.dist.world import World
from trainer.engine import fragments
from trainer.engine.async_io import load_async_io
from trainer.engine.base import FragmentSource, HeldFragment, StepStats, always, set_rates
from trainer.engine.bootstrap import new_groups_time_out, prepare_process, quiet, skip_compiler
from trainer.engine.fragments import Region
from trainer.engine.last_word import LastWord
from trainer.engine.model_setup import (
    MakeModel,
    MakeOptimizer,
    compute_in_bf16,
    settle,
    trained,
    weight_dtype,
    whole_shapes,
)
from trainer.engine.sharded_muon import Matrix, ShardedMuon
from trainer.engine.swapping import fit_swapping, resident, swap_folder
from trainer.engine.weight_average import average_of
from trainer.engine.zero_config import zero_config
from trainer.optim.muon import Muon


class DeepSpeedEngine:
    """Stages 0 to 3. Collective: building one needs all ranks of the world."""

    def __init__(
        self,
        make_model: MakeModel,
        make_optimizer: MakeOptimizer,
        *,
        world: World,
        engine: EngineSection,
        precision: PrecisionSection,
        optimizer: OptimizerSection,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        timeout_s: float = 600.0,
        average: EmaSection | None = None,
    ) -> None:
        """Raises: ConfigError for combinations that DeepSpeed cannot do."""
        self.device = world.device
        self._world = world
        self._stage = engine.stage
        self._linear = nn.functional.linear  # stage 3 replaces it until `close`
        self._scales_loss = precision.kind == "fp16"
        self._max_grad_norm = optimizer.max_grad_norm or math.inf
        device: Literal["cpu", "cuda"] = "cuda" if self.device.type == "cuda" else "cpu"
        self._swap = swap_folder(engine, rank=world.place.rank, device=device)
        config = zero_config(
            engine,
            precision,
            optimizer=optimizer,
            micro_batch_size=micro_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            device=device,
        )
        prepare_process(world.place, self.device)
        import deepspeed  # reads the environment that prepare_process sets

        quiet(deepspeed)
        if optimizer.kind != "muon":
            skip_compiler(deepspeed)
        if self._swap:
            load_async_io(op_builders(), device)
        with new_groups_time_out(timeout_s):
            model = make_model()
            if self._swap:
                fit_swapping(config, model, self._swap.path, world_size=world.place.world_size)
            self._settle(deepspeed, model, config, weight_dtype(precision.kind))
            if precision.kind == "autocast":
                compute_in_bf16(model, self.device)
            self._trained = trained(model)
            with whole_shapes(self._trained):
                self._base = make_optimizer(self._trained)
                group_of = _group_of(self._base)
            if isinstance(self._base, Muon) and self._stage:
                self._base = ShardedMuon(self._base.param_groups)
            made = deepspeed.initialize(model=model, optimizer=self._base, config=config)
            self._ds: Any = made[0]
        if self._stage:
            self._last_word = LastWord(self._base, self._ds.optimizer)
        owned = list(self._owners())
        self._create_moments(owned)
        self._average = average_of(
            average,
            self._base,
            lambda: (owner for owner, _ in self._owners()),
            refresh=self._refresh_weights,
        )
        if isinstance(self._base, ShardedMuon):
            self._base.place(self._matrices([owner for owner, _ in owned], group_of))

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self._ds
        return model

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        self._ds.set_gradient_accumulation_boundary(last)
        # Our losses add up to the step's loss: nothing is divided by the number of micro-steps.
        self._ds.backward(self._undo_average(loss), scale_wrt_gas=False)

    def step(
        self,
        *,
        lr: float,
        number: int | None = None,
        apply_if: Callable[[float], bool] = always,
    ) -> StepStats:
        set_rates(self._base, lr, number=number)
        if self._stage == 0:
            stats = self._step_unsharded(apply_if)
        else:
            self._last_word.given_to(apply_if)
            self._ds.step()
            said = self._last_word
            overflowed = said.overflowed and self._scales_loss
            stats = StepStats(said.norm, said.applied, overflowed)
        if self._average is not None and stats.applied:
            self._average.update()
        return stats

    def fragments(self) -> Iterator[HeldFragment]:
        if self._stage == 0:
            place = self._world.place
            regions = fragments.balanced(
                self._trained, rank=place.rank, world_size=place.world_size
            )
        else:
            regions = self._owned_regions()
        if self._swap is None:
            yield from fragments.held(regions, self._base)
            return
        for i, owned in enumerate(self._by_sub_group(regions)):
            with self._resident(i, write=False):
                yield from fragments.held(owned, self._base)

    @torch.no_grad()
    def load(self, source: FragmentSource, *, step: int) -> None:
        regions = self._owned_regions()
        if self._stage < 3:
            fragments.fill(regions, self._base, source, step=step)
            self._refresh_weights()
        else:
            self._refresh_weights(
                lambda owned: fragments.fill(owned, self._base, source, step=step)
            )
        if self._average is not None:
            self._average.loaded(step)

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.instead()

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return [(n, tuple(getattr(p, "ds_shape", p.shape))) for n, p in self._trained]

    def replicated(self) -> Sequence[tuple[str, torch.Tensor]]:
        if self._stage < 3:
            return [(n, p.data) for n, p in self._trained]
        return [(n, p.data) for n, p in self._trained if getattr(p, "ds_persist", False)]

    def close(self) -> None:
        self._ds.destroy()
        nn.functional.linear = self._linear
        if self._swap:
            self._swap.remove()

    def _undo_average(self, loss: torch.Tensor) -> torch.Tensor:
        """We sum over the ranks; DeepSpeed is told to, which it refuses at stage 3."""
        return loss * self._world.place.world_size if self._stage == 3 else loss

    def _settle(
        self, deepspeed: Any, model: nn.Module, config: dict[str, Any], dtype: torch.dtype
    ) -> None:
        if self._stage < 3:
            settle(model, dtype=dtype, device=self.device)
            return
        # Not `with zero.Init(): make_model()`: that replaces constructors all over torch and
        # broadcasts each whole parameter, only to have its values replaced by `load`.
        init = deepspeed.zero.Init(config_dict_or_path=config)
        nn.functional.linear = _linear_that_lets_go(deepspeed, self._linear)

        def partition(parameter: Any) -> None:
            init._convert_to_deepspeed_param(parameter)
            parameter.partition()

        settle(model, dtype=dtype, device=self.device, each=partition)

    def _step_unsharded(self, apply_if: Callable[[float], bool]) -> StepStats:
        """DeepSpeed has no gradient norm at stage 0, so the clipping is done here as well."""
        parameters = [p for _, p in self._trained]
        norm = float(nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        applied = math.isfinite(norm) and apply_if(norm)
        if applied:
            self._ds.step()
        else:
            self._ds.zero_grad()
        return StepStats(norm, applied)

    @torch.no_grad()
    def _refresh_weights(self, fill: Callable[[list[Region]], None] | None = None) -> None:
        """Weights from masters, as after an update; at stage 3 `fill` is asked for each part first,
        while it is in memory. Collective."""
        if self._stage == 0:  # the weights are the masters
            return
        zero = self._ds.optimizer
        if self._stage < 3:
            zero.update_lp_params()
            return
        zero.checkpoint_event_prologue()  # gives up what is gathered
        for i, owned in enumerate(self._by_sub_group(self._owned_regions())):
            with self._resident(i, write=True):
                if fill is not None:
                    fill(owned)
                zero._reassign_or_swap_out_partitioned_parameters(i)
        zero.checkpoint_event_epilogue()  # gathers the small parameters that stay whole

    def _owned_regions(self) -> list[Region]:
        if self._stage == 0:
            return fragments.whole(self._trained)
        if self._stage == 3:
            return fragments.of_stage_3(self._trained, self._ds.optimizer)
        return fragments.of_stage_1_or_2(self._trained, self._ds.optimizer)

    def _owners(self) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        groups = self._base.param_groups
        if self._stage == 3:  # between steps the groups of the optimizer are empty
            zero = self._ds.optimizer
            for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
                yield flat, groups[zero.sub_group_to_group_id[i]]
            return
        for group in groups:
            yield from ((owner, group) for owner in group["params"])

    def _matrices(
        self, owners: Sequence[torch.Tensor], group_of: dict[int, int]
    ) -> dict[torch.Tensor, list[Matrix]]:
        """For each owner the matrices in it, on this rank or elsewhere, that Muon works on."""
        groups, zero = self._base.param_groups, self._ds.optimizer
        held = {region.name: region for region in self._owned_regions()}
        found: dict[torch.Tensor, list[Matrix]] = {}
        for (name, p), (_, shape) in zip(self._trained, self.layout(), strict=True):
            if groups[group_of[id(p)]]["use_muon"]:
                at = group_of[id(p)]
                if self._stage == 3:
                    at = zero.grad_position[zero.get_param_id(p)][0]
                owner = owners[at]
                found.setdefault(owner, []).append(Matrix(shape, held.get(name)))
        return found

    def _create_moments(self, owned: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> None:
        for i, owner in enumerate(owned):  # at stage 3 the i-th sub-group's
            with self._resident(i, write=True):
                fragments.create_moments(self._base, [owner])

    def _by_sub_group(self, regions: Sequence[Region]) -> Iterator[list[Region]]:
        """Of stage 3: what can be in memory together."""
        for owner in self._ds.optimizer.fp32_partitioned_groups_flat:
            yield [region for region in regions if region.owner is owner]

    def _resident(self, sub_group: int, *, write: bool) -> AbstractContextManager[None]:
        if self._swap is None:
            return nullcontext()
        return resident(self._ds.optimizer, sub_group, write=write)


def import_deepspeed(device: str, *, optimizer: str) -> None:
    """Import DeepSpeed as an engine would, for processes that are forked from this one."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    quiet(deepspeed)
    if optimizer != "muon":
        skip_compiler(deepspeed)


def op_builders() -> Any:
    """DeepSpeed's, for the accelerator that DS_ACCELERATOR names."""
    import deepspeed.ops.op_builder

    return deepspeed.ops.op_builder


def _group_of(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Index of the group each parameter is in, by the parameter's id."""
    return {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _linear_that_lets_go(deepspeed: Any, linear: Callable[..., torch.Tensor]) -> Any:
    """`linear` for stage 3, whose backward gathers the weight again.

    Autograd's own keeps a view of every gathered weight until the backward, and so the whole model.
    DeepSpeed's adds a bias to an output already rounded to bf16: losses were off by 2e-3 after 20
    steps. This takes DeepSpeed's backward and torch's forward.
    """
    base: Any = deepspeed.runtime.zero.linear.LinearFunctionForZeroStage3

    class Linear(base):  # type: ignore[misc]
        @staticmethod
        def forward(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
            return linear(x, weight, bias)

    def linear_that_lets_go(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        result: torch.Tensor = Linear.apply(input, weight, bias)
        return result

    return linear_that_lets_go
