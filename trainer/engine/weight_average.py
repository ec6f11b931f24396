"""An average of the weights over training (EMA), kept where the weights are, a piece on each rank.

It is one more value beside each parameter, as the optimizer's moments are: fragments carry it into
checkpoints, and each rank averages what it owns. Nothing is exchanged until it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from trainer.config.sections.regularize import EmaSection
from trainer.objectives.weight_average import averaged_, warmed_decay
from trainer.records.fragment import AVERAGE

_PIECE_ELEMENTS = 4 << 20  # exchanged at a time, so that no second copy is held


class WeightAverage:
    """`owners`: what the optimizer's state hangs on, of this rank; `refresh`: make the model's own
    weights from them anew (collective where the engine's is)."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        owners: Callable[[], Iterable[torch.Tensor]],
        *,
        decay: float,
        warmup: bool,
        refresh: Callable[[], None],
    ) -> None:
        self._optimizer = optimizer
        self._owners = owners
        self._decay, self._warmup = decay, warmup
        self._refresh = refresh
        self._updates = 0
        for owner in owners():
            average = torch.zeros_like(owner, requires_grad=False)
            self._optimizer.state[owner][AVERAGE] = average

    @torch.no_grad()
    def loaded(self, updates: int) -> None:
        """Parameters and averages were filled as after so many updates; before the first one the
        average is what the weights begin as."""
        self._updates = updates
        if updates == 0:
            for owner, average in self._pairs():
                average.copy_(owner)

    @torch.no_grad()
    def update(self) -> None:
        """After an update that was applied."""
        self._updates += 1
        decay = warmed_decay(self._updates, self._decay) if self._warmup else self._decay
        for owner, average in self._pairs():
            averaged_(average, owner.detach(), decay=decay)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """The model computes with the average; the weights come back to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for owner, average in self._pairs():
            ours, others = owner.detach().view(-1), average.view(-1)
            for start in range(0, ours.numel(), _PIECE_ELEMENTS):
                piece = slice(start, start + _PIECE_ELEMENTS)
                kept = ours[piece].clone()
                ours[piece].copy_(others[piece])
                others[piece].copy_(kept)
        self._refresh()

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for owner in self._owners():
            yield owner, self._optimizer.state[owner][AVERAGE]


def average_of(
    section: EmaSection | None,
    optimizer: torch.optim.Optimizer,
    owners: Callable[[], Iterable[torch.Tensor]],
    *,
    refresh: Callable[[], None],
) -> WeightAverage | None:
    """None if no average is asked for."""
    if section is None or not section.decay:
        return None
    return WeightAverage(
        optimizer, owners, decay=section.decay, warmup=section.warmup, refresh=refresh
    )
