"""The pool that all tests with several ranks stand on."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from tests.helpers.ranks import RankFailure, RankPool
from trainer.dist.world import World


def _sum_of_ranks(world: World, factor: int) -> tuple[int, float, int]:
    total = world.sum([world.place.rank * factor])[0]
    return world.place.rank, total, os.getpid()


def test_worlds_of_different_sizes_follow_each_other(ranks: RankPool) -> None:
    seen: set[int] = set()
    for world_size in (2, 3, 1, 2):
        answers = ranks.run(world_size, _sum_of_ranks, 10)
        total = 10.0 * sum(range(world_size))
        assert [(rank, found) for rank, found, _ in answers] == [
            (rank, total) for rank in range(world_size)
        ]
        pids = {pid for _, _, pid in answers}
        assert not pids & seen  # no process, so no vendor's global, lives in two worlds
        seen |= pids


def _three_steps_of_zero(world: World, stage: int) -> list[float]:
    import deepspeed

    if world.place.world_size == 1:  # DeepSpeed wants a group for one rank too
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1_000_000,
        },
    )
    losses = []
    # The same row on every rank: the mean over ranks is then what one rank would see.
    row = torch.linspace(-1, 1, 5).unsqueeze(0)
    for _ in range(3):
        loss = engine(row).square().sum()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def test_deepspeed_runs_in_one_world_after_another(ranks: RankPool) -> None:
    runs = [
        ranks.run(world_size, _three_steps_of_zero, stage)
        for world_size, stage in ((2, 3), (3, 1), (1, 3), (2, 2))
    ]
    alone = runs[2][0]
    assert alone[2] < alone[0]
    for losses in (losses for run in runs for losses in run):
        assert losses == pytest.approx(alone, abs=5e-6)  # measured: 5e-7


def _fails_on(world: World, rank: int) -> None:
    expected = 41
    if world.place.rank == rank:
        found = expected + 1
        assert found == expected, "not the answer"
    world.sum([1.0])  # the others wait here for the one that left


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_failing_rank_shows_its_own_traceback(ranks: RankPool, rank: int) -> None:
    with pytest.raises(RankFailure) as failure:
        ranks.run(2, _fails_on, rank)
    text = str(failure.value)
    assert text.startswith(f"rank {rank} of 2 failed:\nTraceback")
    assert "in _fails_on" in text
    assert "AssertionError: not the answer" in text
    assert "found = 42" in text
    assert f"then rank {1 - rank} failed" in text


def _dies_on(world: World, rank: int) -> None:
    if world.place.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    world.sum([1.0])


def test_a_rank_that_dies_is_named_before_those_it_disturbed(ranks: RankPool) -> None:
    with pytest.raises(RankFailure, match=r"^rank 1 of 2 died without a word, exit code -9"):
        ranks.run(2, _dies_on, 1)


def _sleeps_on(world: World, rank: int) -> None:
    if world.place.rank == rank:
        time.sleep(3600)
    world.sum([1.0])


def _stops_itself(world: World) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_hanging_rank_is_ended_at_the_deadline_and_shows_where(ranks: RankPool) -> None:
    with pytest.raises(RankFailure) as failure:
        ranks.run(2, _sleeps_on, 1, timeout_s=10)
    text = str(failure.value)
    assert text.count("had not returned in time") == 2  # rank 0 hangs in its collective
    assert text.count("in _sleeps_on") == 2
    assert "in sum" in text
    assert [total for _, total, _ in ranks.run(2, _sum_of_ranks, 1)] == [1.0, 1.0]


def test_a_rank_that_cannot_end_itself_is_killed(ranks: RankPool) -> None:
    with pytest.raises(RankFailure, match="rank 0 of 1 had not returned in time"):
        ranks.run(1, _stops_itself, timeout_s=1)


def _environment(world: World) -> tuple[str, ...]:
    return tuple(os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


def test_a_rank_finds_its_place_in_the_environment(ranks: RankPool) -> None:
    assert ranks.run(2, _environment) == [("0", "2", "0"), ("1", "2", "1")]


def test_a_world_that_is_too_large_is_refused(ranks: RankPool) -> None:
    with pytest.raises(ValueError, match="runs 1 to 3 ranks"):
        ranks.run(4, _environment)
