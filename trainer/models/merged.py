"""A model with adapters as one without: what is exported, and what others load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from trainer.config.sections.model import LoraAdapter, Model
from trainer.models.adapters import is_adapter, lies_transposed, merged_rows
from trainer.models.starting import StartingValues, base_layout, starting_values
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import MASTER, Fragment

_PIECE_ELEMENTS = 4 << 20


class Source(Protocol):
    """A FragmentSource, as trainer/engine calls it."""

    def read(self, fragment: Fragment, out: torch.Tensor) -> None: ...


class AdaptedValues:
    """A FragmentSource for both: the parameters of the model with its adapters by their own names,
    and of the same model without by Hugging Face's, adapters added in.

    `trained`: a checkpoint of what was trained. `layout`: the model without, whole.
    """

    def __init__(
        self, trained: Source, frozen: StartingValues, *, model: AnyModel, section: Model
    ) -> None:
        self._trained = trained
        self._frozen = frozen
        self._named = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self._learned = {n for n, p in model.named_parameters() if p.requires_grad}
        self._transposed = lies_transposed(model)
        adapter = section.adapter
        is_low_rank = isinstance(adapter, LoraAdapter)
        self._scale = adapter.alpha / adapter.rank if isinstance(adapter, LoraAdapter) else 0.0
        self._beside: Mapping[str, str] = {
            f"{n.partition('.lora_')[0]}.weight": n.partition(".lora_")[0]
            for n in self._named
            if is_low_rank and is_adapter(n)
        }
        self._matrices: dict[str, tuple[torch.Tensor, ...]] = {}
        self.layout = base_layout(model)

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: as the sources it reads."""
        if fragment.name in self._learned or fragment.kind != MASTER:
            self._trained.read(fragment, out)
        elif fragment.name in self._beside:
            self._merged(fragment, out)
        else:
            self._frozen.read(fragment, out)

    def _merged(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Whole rows at a time, as many as a piece holds; the last asked for is kept."""
        width = fragment.shape[1]
        first, last = fragment.start // width, -(-fragment.stop // width)
        at_a_time = max(1, _PIECE_ELEMENTS // width)
        for row in range(first, last, at_a_time):
            stop = min(row + at_a_time, last)
            piece = self._rows(fragment, row, stop).reshape(-1)
            start_at, stop_at = max(fragment.start, row * width), min(fragment.stop, stop * width)
            part = piece[start_at - row * width : stop_at - row * width]
            out[start_at - fragment.start : stop_at - fragment.start].copy_(part)

    def _rows(self, fragment: Fragment, first: int, last: int) -> torch.Tensor:
        a, b, *more = self._low_rank(fragment.name)
        magnitude = more[0] if more else None
        width = fragment.shape[1]
        if self._transposed:  # a row is one input's weights: the whole matrix, and of it the rows
            base = self._base(fragment, 0, fragment.shape[0] * width).view(fragment.shape)
            whole = merged_rows(base.T, a, b, scale=self._scale, magnitude=magnitude)
            return whole.T[first:last]
        base = self._base(fragment, first * width, last * width).view(-1, width)
        lengths = None if magnitude is None else magnitude[first:last]
        return merged_rows(base, a, b[first:last], scale=self._scale, magnitude=lengths)

    def _base(self, fragment: Fragment, start: int, stop: int) -> torch.Tensor:
        values = torch.empty(stop - start)
        name = fragment.name
        self._frozen.read(Fragment(name, MASTER, fragment.shape, start, stop), values)
        return values

    def _low_rank(self, name: str) -> tuple[torch.Tensor, ...]:
        if name not in self._matrices:
            place = self._beside[name]
            names = [f"{place}.lora_A.default.weight", f"{place}.lora_B.default.weight"]
            names += [f"{place}.lora_magnitude_vector.default.weight"]
            self._matrices = {name: tuple(self._whole(n) for n in names if n in self._named)}
        return self._matrices[name]

    def _whole(self, name: str) -> torch.Tensor:
        shape = self._named[name]
        values = torch.empty(math.prod(shape))
        self._trained.read(Fragment(name, MASTER, shape, 0, math.prod(shape)), values)
        return values.view(shape)


def adapted_values(trained: Source, model: AnyModel, section: Model, *, seed: int) -> AdaptedValues:
    """`model`: with the section's adapters, on meta. Raises: as `starting_values`."""
    frozen = starting_values(section, model, seed=seed)
    return AdaptedValues(trained, frozen, model=model, section=section)


def has_frozen(section: Model) -> bool:
    """Does a checkpoint of this model hold a part of it alone?"""
    return section.adapter.kind != "none"
