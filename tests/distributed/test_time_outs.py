"""No collective waits longer than resources.collective_timeout_s, whoever made its group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.contract.engine_cases import Case, Drawn, make_engine, train_step
from tests.helpers.ranks import RankPool
from trainer.dist.world import World, leave, meet

SECONDS = 77.0


def groups_after_a_step(world: World, folder: str, stage: Any) -> dict[str, float]:
    """Every group of this process once it has trained a step: its name and its time-out."""
    leave(world)  # it was met with the default
    ours = meet(
        world.place,
        device=world.device,
        timeout_s=SECONDS,
        init_method=f"file://{folder}/{stage}",
    )
    case = Case(engine=stage, micro_steps=2)
    engine = make_engine(ours, case, timeout_s=SECONDS)
    engine.load(Drawn(), step=0)
    train_step(ours, engine, case, 1)
    groups = dist.distributed_c10d._world.pg_map
    names = dist.distributed_c10d._world.pg_names
    cpu = torch.device("cpu")
    return {
        names[group]: group._get_backend(cpu).options._timeout.total_seconds() for group in groups
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_group_has_our_time_out(ranks: RankPool, tmp_path: Path, stage: int) -> None:
    for found in ranks.run(2, groups_after_a_step, str(tmp_path), stage):
        assert len(found) >= 3  # the world's, the one for agreements, DeepSpeed's
        assert set(found.values()) == {SECONDS}, found
