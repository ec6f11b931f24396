"""What the swapping suite runs inside ranks: engines whose state waits in files."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.engine_cases import (
    Case,
    Drawn,
    Held,
    Result,
    Tensors,
    held_by,
    make_engine,
    rows,
    train_step,
)
from trainer.dist.world import World
from trainer.engine.swapping import fit_swapping
from trainer.errors import ConfigError

NVME = (("offload_optimizer", "nvme"), ("offload_parameters", "nvme"))


@dataclass(frozen=True)
class Swapped:
    """What a rank saw of its swap files. Units: bytes."""

    optimizer: int  # in files of masters and moments, after the last step
    parameters: int
    mode: int  # of its folder
    left: list[str]  # in the folder of all ranks, after this one was closed
    result: Result


def train(
    world: World, case: Case, folder: str, tensors: Tensors | None = None, first: int = 1
) -> Swapped:
    """As engine_cases.run, with `folder` as the disk; says what lay there."""
    case = replace(case, changes=(*case.changes, ("nvme_path", folder)))
    engine: Any = make_engine(world, case)
    engine.load(Held(tensors) if tensors else Drawn(), step=first - 1)
    losses, norms = [], []
    for step in range(first, first + case.steps):
        loss, norm = train_step(world, engine, case, step)
        losses.append(loss)
        norms.append(norm)
        evaluate(engine)
    held = held_by(engine)
    [own] = Path(folder).glob(f"longhaul-swap-rank{world.place.rank}-*")
    sizes = {path: path.stat().st_size for path in own.rglob("*.swp")}
    mode = stat.S_IMODE(own.stat().st_mode)
    engine.close()
    return Swapped(
        optimizer=sum(size for path, size in sizes.items() if "optimizer" in path.parts),
        parameters=sum(size for path, size in sizes.items() if "optimizer" not in path.parts),
        mode=mode,
        left=[str(path) for path in own.rglob("*")],
        result=Result(losses, norms, held),
    )


def train_all(world: World, wanted: Sequence[Case], folder: str) -> list[Swapped]:
    return [train(world, case, folder) for case in wanted]


def evaluate(engine: Any) -> None:
    """A forward without a backward, between steps: weights are fetched in another order."""
    engine.model.eval()
    with torch.no_grad():
        engine.model(rows(99)[0])
    engine.model.train()


def refused_to_lock(world: World) -> str:
    """What a machine says that lets users lock 1 MiB."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (2**20, 2**20))
    user = os.geteuid()
    if user == 0:  # the limit does not hold for root
        os.seteuid(65534)
    config = {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}
    with torch.device("meta"):
        model = torch.nn.Linear(5120, 5120)
    with pytest.raises(ConfigError) as caught:
        fit_swapping(config, model, Path("/local"), world_size=1)
    os.seteuid(user)
    return str(caught.value)
