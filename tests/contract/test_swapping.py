"""State swapped to a disk trains, saves and resumes as the state in memory does.

Most of it only where async_io is built: python -m trainer.commands.build_async_io (minutes).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.contract import engine_cases, swap_cases
from tests.contract.engine_cases import Case, Tensors
from tests.contract.swap_cases import NVME, Swapped
from tests.helpers.ranks import RankPool
from trainer.records.built_ops import BUILD, is_built

needs_async_io = pytest.mark.skipif(
    not is_built("cpu"), reason=f"DeepSpeed's async_io is not built; build it: {BUILD} --device cpu"
)

CASES = [
    Case(engine=3, wide=True, steps=3, precision=precision, micro_steps=m)
    for precision in ("fp32", "bf16")
    for m in (1, 2)
]


def on_disk(case: Case) -> Case:
    return replace(case, changes=NVME)


def whole(ranks: list[Swapped]) -> Tensors:
    return engine_cases.whole(part for rank in ranks for part in rank.result.fragments)


def same(got: Tensors, wanted: Tensors) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in got)


@needs_async_io
def test_training_on_disk_is_training_in_memory(ranks: RankPool, tmp_path: Path) -> None:
    wanted = [on_disk(case) for case in CASES]
    done = ranks.run(2, swap_cases.train_all, wanted, str(tmp_path), timeout_s=300.0)
    swapped = list(zip(*done, strict=True))
    in_memory = list(zip(*ranks.run(2, engine_cases.run_all, CASES), strict=True))
    for case, on_nvme, reference in zip(CASES, swapped, in_memory, strict=True):
        held = engine_cases.whole(part for rank in reference for part in rank.fragments)
        for one, plain in zip(on_nvme, reference, strict=True):
            assert one.result.losses == pytest.approx(plain.losses, abs=1e-6), case
            # The norm is summed in another order; it scales the gradients by 4e-7 more or less.
            assert one.result.norms == pytest.approx(plain.norms, rel=2e-6), case
        got = whole(list(on_nvme))
        assert got.keys() == held.keys()
        assert max(float((got[key] - held[key]).abs().max()) for key in got) <= 5e-6, case


@needs_async_io
def test_it_lies_on_the_disk_while_it_trains_and_not_after(ranks: RankPool, tmp_path: Path) -> None:
    large = 2 * 513 * 2201  # elements of the two weights whose shares are above 1 MiB
    for case in CASES[1:3]:
        for seen in ranks.run(2, swap_cases.train, on_disk(case), str(tmp_path)):
            assert seen.optimizer >= large // 2 * 4 * 3, "masters and moments"
            assert seen.parameters >= large // 2 * (4 if case.precision == "fp32" else 2)
            assert seen.mode == 0o700
            assert not seen.left
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@needs_async_io
def test_resuming_on_disk_changes_no_bit(ranks: RankPool, tmp_path: Path) -> None:
    for case in CASES[1:3]:
        disk = on_disk(case)
        straight = ranks.run(2, swap_cases.train, disk, str(tmp_path))
        first = ranks.run(2, swap_cases.train, replace(disk, steps=2), str(tmp_path))
        then = ranks.run(
            2, swap_cases.train, replace(disk, steps=1), str(tmp_path), whole(first), 3
        )
        assert then[0].result.losses == straight[0].result.losses[2:]
        assert then[0].result.norms == straight[0].result.norms[2:]
        assert same(whole(then), whole(straight))


@needs_async_io
def test_a_disk_checkpoint_goes_on_in_memory_and_back(ranks: RankPool, tmp_path: Path) -> None:
    case = CASES[3]
    first = whole(ranks.run(2, swap_cases.train, replace(on_disk(case), steps=1), str(tmp_path)))
    results = ranks.run(3, engine_cases.resume_all, [(replace(case, steps=1), first, 1)])
    loaded = engine_cases.whole(part for [[held, _]] in results for part in held)
    assert same(loaded, first)
    second = engine_cases.whole(part for [[_, result]] in results for part in result.fragments)
    back = ranks.run(1, swap_cases.train, replace(on_disk(case), steps=0), str(tmp_path), second, 3)
    assert same(whole(back), second)


@needs_async_io
def test_a_step_that_is_not_taken_leaves_the_disk_as_it_was(
    ranks: RankPool, tmp_path: Path
) -> None:
    changes = (*NVME, ("nvme_path", str(tmp_path)))
    case = replace(CASES[0], changes=changes, steps=1)
    for [(norm, same_after)] in ranks.run(2, engine_cases.poison_all, [case]):
        assert norm == float("inf")
        assert same_after


def test_memory_that_cannot_be_locked_is_refused_not_aborted(ranks: RankPool) -> None:
    [said] = ranks.run(1, swap_cases.refused_to_lock)
    assert "swapping page-locks 400 MiB in each rank" in said
    assert "ulimit -l unlimited" in said
