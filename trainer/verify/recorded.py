"""A task that notes which samples a rank really consumes, and can spoil one: for drills.

    task=custom task.target=trainer.verify.recorded:Recorded task.settings={folder: ...}

One line a micro-step in FOLDER/RANK-PID.jsonl, written before the forward; see launch/drills.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from trainer.batch import TokenBatch
from trainer.dist.place import Place
from trainer.records.json_file import append_line
from trainer.tasks.causal_lm import CausalLm


class Recorded(CausalLm):
    """`spoil`: {"sample": index, "how": nan | inf | loss | element | embedding | eat}, or nothing.

    nan, inf: the loss that goes backward. loss: the value that is reported, not its gradient.
    element: one element of one gradient. embedding: the embedding's gradient only. eat: memory,
    until there is none.
    """

    def __init__(self, *, folder: str, spoil: dict[str, Any] | None = None) -> None:
        place = Place.from_env()
        self._who = {"rank": place.rank, "world": place.world_size, "pid": os.getpid()}
        self._path = Path(folder) / f"{place.rank}-{os.getpid()}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._spoil = spoil or {}

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        append_line(self._path, {**self._who, "time": time.time(), "ids": batch.sample_indices})
        loss = super().loss_sum(model, batch)
        if self._spoil.get("sample") in batch.sample_indices:
            return _spoilt(loss, model, str(self._spoil["how"]))
        return loss


def _eat() -> NoReturn:
    taken = []
    while True:
        taken.append(b"x" * (64 << 20))


def _spoilt(loss: torch.Tensor, model: torch.nn.Module, how: str) -> torch.Tensor:
    if how == "eat":
        _eat()
    if how in ("nan", "inf"):
        return loss * float(how)
    if how == "loss":
        return loss + (float("nan") * loss.detach())
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameter = next(p for n, p in named if how == "element" or "embed" in n or "wte" in n)
    width = 1 if how == "element" else parameter.numel()

    def damage(gradient: torch.Tensor) -> torch.Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[:width] = float("nan")
        handle.remove()
        return spoilt

    handle = parameter.register_hook(damage)  # type: ignore[no-untyped-call]
    return loss
