"""Who a rank is, what one rank alone does, and randomness as a function of the place in a run."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch

from trainer.dist.device import choose_device, measured_gemm_flops, memory_meter, peak_of
from trainer.dist.seeds import seed_of, step_seeder
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone, Place, is_echo, meet
from trainer.errors import DataError, Exit, PeerFailed, WorldError


def _env(**names: int | str) -> dict[str, str]:
    return {name: str(value) for name, value in names.items()}


def test_a_place_is_read_from_three_variables() -> None:
    assert Place.from_env(_env(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1)) == Place(3, 4, 1)
    assert Place.from_env({}) == Place(0, 1, 0)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (_env(RANK=1, WORLD_SIZE=2), "LOCAL_RANK not set although other rank variables are"),
        (_env(RANK="x", WORLD_SIZE=2, LOCAL_RANK=0), "each must be a whole number"),
        (_env(RANK=2, WORLD_SIZE=2, LOCAL_RANK=0), "0 <= LOCAL_RANK <= RANK < WORLD_SIZE"),
        (_env(RANK=-1, WORLD_SIZE=2, LOCAL_RANK=-1), "RANK=-1"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(env: dict[str, str], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        Place.from_env(env)


def test_a_world_of_another_size_than_planned_is_refused() -> None:
    Place(0, 2, 0).check(2)
    with pytest.raises(WorldError, match=r"WORLD_SIZE is 2, but this attempt was planned for 4"):
        Place(0, 2, 0).check(4)


def test_ranks_without_an_address_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(WorldError, match=r"does not know where to meet.*MASTER_ADDR"):
        meet(Place(0, 2, 0), device=torch.device("cpu"), timeout_s=5)


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", Place(1, 4, 1)) == torch.device("cuda", 1)
    with pytest.raises(WorldError, match=r"needs CUDA device 2, but this node shows 2; .*=2"):
        choose_device("cuda", Place(2, 4, 2))


def test_one_rank_alone_gets_what_many_would_get() -> None:
    world = Alone()
    assert world.sum([1, 2.5]) == [1.0, 2.5]
    assert world.max([3]) == [3.0]
    assert world.lead(lambda: (1, {"a": None})) == [1, {"a": None}]  # as JSON gives it back
    assert world.gather("text") == ["text"]
    with pytest.raises(TypeError):
        world.lead(lambda: object())
    with pytest.raises(DataError, match="mine"):
        world.each(_fail)


def _fail() -> None:
    raise DataError("mine")


def test_an_echo_is_told_from_a_cause() -> None:
    assert is_echo(PeerFailed("rank 1 failed: it did", Exit.STOP))
    assert is_echo(RuntimeError("[...gloo/transport/tcp/pair.cc:544] Connection closed by peer"))
    assert not is_echo(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_echo(DataError("Connection closed by peer"))


def test_the_same_place_draws_the_same_numbers_and_no_other_does() -> None:
    reseed = step_seeder(7)

    def draw(step: int, sample: int) -> tuple[float, float, float]:
        reseed(step, sample)
        return float(torch.rand(1)), random.random(), float(np.random.rand())

    first = draw(3, 40)
    others = [draw(3, 41), draw(4, 40), draw(40, 3), draw(3, -1)]
    assert draw(3, 40) == first
    assert len({first, *others}) == 5
    step_seeder(8)(3, 40)
    assert float(torch.rand(1)) != first[0]


def test_seeds_do_not_depend_on_the_machine() -> None:
    assert seed_of("step", 1, 2, 3) == 6062978760770006239
    assert 0 <= seed_of() < 2**63


def test_peaks_say_where_they_come_from() -> None:
    given = peak_of(torch.device("cpu"), torch.float32, given_tflops=2.0)
    assert (given.flops, given.source) == (2e12, "observers.peak_tflops")
    measured = peak_of(torch.device("cpu"), torch.float32, given_tflops=0.0)
    assert 1e8 < measured.flops < 1e14
    assert "measured" in measured.source


def test_the_measured_peak_is_not_below_a_plain_product() -> None:
    a = torch.randn(512, 512)
    torch.mm(a, a)
    started = time.perf_counter()
    for _ in range(5):
        torch.mm(a, a)
    plain = 5 * 2 * 512**3 / (time.perf_counter() - started)
    assert measured_gemm_flops(torch.float32) > 0.5 * plain


def test_memory_is_the_resident_set_of_this_process() -> None:
    before = memory_meter(torch.device("cpu"))()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert memory_meter(torch.device("cpu"))() - before > 32 * 2**20
    assert block.sum() > 0
    assert before > 50 * 2**20


def test_start_up_is_accounted_for_from_the_process_start() -> None:
    startup = StartUp()
    startup.lap("python")
    startup.lap("imports")
    facts = startup.facts()
    assert 0 < time.time() - facts["process_started"] < 3600
    assert facts["startup_s"]["python"] > 0.05
    assert 0 <= facts["startup_s"]["imports"] < 100


def test_a_peak_is_not_lower_because_others_had_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        quiet = measured_gemm_flops(torch.float32)
        # a second goes by whenever the clock on the wall is looked at
        monkeypatch.setattr("trainer.dist.device.time.perf_counter", lambda: float(next(clock)))
        assert measured_gemm_flops(torch.float32, seconds=50) > quiet / 4
    finally:
        torch.set_num_threads(threads)
