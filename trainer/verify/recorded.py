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

_LARGE = 1000.0
_MEAL_BYTES = 64 << 20


class Recorded(CausalLm):
    """`spoil`: {"sample": index, "how": large | eat}, or nothing.

    large: a loss and its gradient a thousand times what they are. eat: memory, until there is none.
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
        if self._spoil.get("sample") not in batch.sample_indices:
            return loss
        return loss * _LARGE if self._spoil["how"] == "large" else _eat()


def _eat() -> NoReturn:
    taken = []
    while True:
        taken.append(b"x" * _MEAL_BYTES)
