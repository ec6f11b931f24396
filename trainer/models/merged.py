"""A model with adapters as one without: what is exported, and what others load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from trainer.config.sections.adapters import LoraAdapter
from trainer.config.sections.model import Model
from trainer.models.adapters import is_adapter, lies_transposed, place_of
from trainer.models.starting import StartingValues, base_layout, starting_values
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import MASTER, Fragment

_PIECE_ELEMENTS = 4 << 20
_MERGED = ("none", "freeze", "lora", "dora", "ia3")


class Source(Protocol):
    """A FragmentSource, as trainer/engine calls it."""

    def read(self, fragment: Fragment, out: torch.Tensor) -> None: ...


def merges(section: Model) -> bool:
    """Is there a model without adapters that computes the same?"""
    return section.adapter.kind in _MERGED


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
        self._scale = adapter.scale if isinstance(adapter, LoraAdapter) else 0.0
        places = {place_of(n) for n in self._named if is_adapter(n)}
        self._beside: Mapping[str, str] = {
            f"{place}.{leaf}": place for place in sorted(places) for leaf in ("weight", "bias")
        }
        self._held: dict[str, torch.Tensor] = {}  # of one matrix, the last asked for
        self._held_of = ""
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
        """Whole rows at a time, as many as a piece holds."""
        width = math.prod(fragment.shape[1:])
        first, last = fragment.start // width, -(-fragment.stop // width)
        at_a_time = max(1, _PIECE_ELEMENTS // width)
        for row in range(first, last, at_a_time):
            stop = min(row + at_a_time, last)
            piece = self._rows(fragment, row, stop).reshape(-1)
            start_at, stop_at = max(fragment.start, row * width), min(fragment.stop, stop * width)
            part = piece[start_at - row * width : stop_at - row * width]
            out[start_at - fragment.start : stop_at - fragment.start].copy_(part)

    def _rows(self, fragment: Fragment, first: int, last: int) -> torch.Tensor:
        adapter = self._adapter(self._beside[fragment.name])
        if "ia3_l" in adapter:
            return self._scaled(fragment, adapter["ia3_l"], first, last)
        if len(fragment.shape) == 1:  # a bias, which low-rank matrices leave alone
            return self._base(fragment, first, last)
        a, b = adapter["lora_A"], adapter["lora_B"]
        magnitude = adapter.get("lora_magnitude_vector")
        width = fragment.shape[1]
        if self._transposed:  # a row is one input's weights: the whole matrix, and of it the rows
            base = self._base(fragment, 0, fragment.shape[0] * width).view(fragment.shape)
            whole = merged_rows(base.T, a, b, scale=self._scale, magnitude=magnitude)
            return whole.T[first:last]
        base = self._base(fragment, first * width, last * width).view(-1, width)
        lengths = None if magnitude is None else magnitude[first:last]
        return merged_rows(base, a, b[first:last], scale=self._scale, magnitude=lengths)

    def _scaled(
        self, fragment: Fragment, factors: torch.Tensor, first: int, last: int
    ) -> torch.Tensor:
        """IA3's: factors of outputs (O, 1), bias and all; or of inputs (1, I)."""
        of_inputs = factors.shape[0] == 1
        if len(fragment.shape) == 1:
            bias = self._base(fragment, first, last)
            return bias if of_inputs else bias * factors.flatten()[first:last]
        width = fragment.shape[1]
        base = self._base(fragment, first * width, last * width).view(-1, width)
        if of_inputs == self._transposed:  # each row has a factor
            return base * factors.reshape(-1, 1)[first:last]
        return base * factors.reshape(1, -1)

    def _base(self, fragment: Fragment, start: int, stop: int) -> torch.Tensor:
        values = torch.empty(stop - start)
        name = fragment.name
        self._frozen.read(Fragment(name, MASTER, fragment.shape, start, stop), values)
        return values

    def _adapter(self, place: str) -> dict[str, torch.Tensor]:
        if self._held_of != place:
            names = [n for n in self._named if is_adapter(n) and place_of(n) == place]
            self._held = {n[len(place) + 1 :].partition(".")[0]: self._whole(n) for n in names}
            self._held_of = place
        return self._held

    def _whole(self, name: str) -> torch.Tensor:
        shape = self._named[name]
        values = torch.empty(math.prod(shape))
        self._trained.read(Fragment(name, MASTER, shape, 0, math.prod(shape)), values)
        return values.view(shape)


def merged_rows(
    base: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    scale: float,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of the matrix that computes what a frozen one and its adapter compute together.

    fp32. Shapes: O of the rows of the output, I inputs, r rank; base (O, I), a (r, I), b (O, r),
    magnitude (O). Source: peft 0.21, lora.layer.Linear.merge and lora.dora.
    """
    whole: torch.Tensor = base + scale * (b @ a)
    if magnitude is None:
        return whole
    longer: torch.Tensor = magnitude / whole.norm(dim=1)
    return whole * longer.unsqueeze(-1)


def adapted_values(trained: Source, model: AnyModel, section: Model, *, seed: int) -> AdaptedValues:
    """`model`: with the section's adapters, on meta. Raises: as `starting_values`."""
    frozen = starting_values(section, model, seed=seed, frozen_only=True)
    return AdaptedValues(trained, frozen, model=model, section=section)


def has_frozen(section: Model) -> bool:
    """Does a checkpoint of this model hold a part of it alone?"""
    return section.adapter.kind != "none"
