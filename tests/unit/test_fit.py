"""Which layout fits a memory."""

from __future__ import annotations

import time

import pytest

from tests.helpers.configs import config, values
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import Refused
from trainer.fit import USABLE, Fit, fit

ENGINES = {
    name: DeepSpeedEngine.model_validate(values(f"engine={name}")["engine"])
    for name in ("zero1", "zero2", "zero3", "zero3_offload_cpu")
}
LLAMA_8B = (
    "model=llama3_8b", "data.sequence_length=8192", "batch.global_batch_size=128",
    "batch.micro_batch_size=1", "resources.device=cuda",
)  # fmt: skip


def fitted(gigabytes: float, *overrides: str) -> Fit:
    return fit(config(*overrides), int(gigabytes * 1e9), device="cuda", engines=ENGINES)


def test_plenty_of_memory_takes_the_least_traffic_and_no_recomputation() -> None:
    found = fitted(1000, "model=llama_debug")
    assert found.overrides[0] == "engine=zero1"
    assert found.overrides[2] == "model.activation_checkpointing=false"


@pytest.mark.parametrize("gigabytes", [40, 80, 140])
@pytest.mark.parametrize("ranks", [8, 64])
def test_what_is_found_fits_and_its_overrides_say_so(gigabytes: int, ranks: int) -> None:
    world = f"resources.ranks_per_node={ranks}"
    found = fitted(gigabytes, *LLAMA_8B, world)
    assert found.memory.total <= USABLE * gigabytes * 1e9
    again = config(*LLAMA_8B, world, *found.overrides)
    assert again == found.config


def test_less_memory_means_more_sharing() -> None:
    much, little = (fitted(g, *LLAMA_8B, "resources.ranks_per_node=8") for g in (300, 40))
    assert much.memory.total > little.memory.total
    assert little.overrides[0] == "engine=zero3"


def test_offload_is_taken_only_when_nothing_else_fits() -> None:
    found = fitted(40, *LLAMA_8B, "resources.ranks_per_node=2")
    assert found.overrides[0] == "engine=zero3_offload_cpu"
    assert found.memory.host > 0


def test_nothing_that_fits_is_refused_with_the_least() -> None:
    with pytest.raises(Refused, match=r"nothing fits 1\.9 GiB a rank on 2 ranks; the least is"):
        fitted(2, *LLAMA_8B, "resources.ranks_per_node=2")


def test_a_small_memory_is_named_in_its_own_unit() -> None:
    said = r"nothing fits 976\.6 KiB a rank .* the least is 1\d\d\.\d MiB"
    with pytest.raises(Refused, match=said):
        fitted(0.001, "model=llama_debug")


def test_a_70b_on_512_ranks_is_searched_in_no_time() -> None:
    start = time.process_time()
    found = fitted(
        80, "model=llama3_70b", "data.sequence_length=8192", "batch.global_batch_size=2048",
        "batch.micro_batch_size=1", "resources.ranks_per_node=512",
    )  # fmt: skip
    assert found.overrides[0] == "engine=zero3"
    assert time.process_time() - start < 5.0  # 0.1 s on a quiet core
