"""Runs from plan.json to done.json: every way to cut a run up gives the same run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankPool
from tests.helpers.tiny_run import tiny_run
from trainer.build import build_job, build_observers
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import read_plan
from trainer.records.json_file import read_json, read_lines
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles

_FP32 = ("precision=fp32",)
_ENGINES = {
    "plain": ("engine=plain", "resources.ranks_per_node=1"),
    "zero1": ("engine=zero1", "resources.ranks_per_node=1"),
    "zero2": ("engine=zero2", "resources.ranks_per_node=2"),
    "zero3": ("engine=zero3", "resources.ranks_per_node=3"),
}


@dataclass
class StopAt:
    """Raised once `step` is done, on one rank only; the loop asks once a step."""

    left: int = 0

    def is_set(self) -> bool:
        self.left -= 1
        return self.left == 0


def _train(world: World, root: Path, attempt: int, until: int) -> tuple[str, int]:
    run, startup, stop = RunFiles(root), StartUp(), StopAt()
    plan = read_plan(run.attempt(attempt).plan)
    job, state = build_job(plan, world, run=run, stop=stop, startup=startup)
    if until < 6 and world.place.rank == world.place.world_size - 1:
        stop.left = until - state.step
    if world.place.rank == 0:
        observers = build_observers(plan, run, job=job, state=state, startup=startup)
        job = dataclasses.replace(job, observers=observers)
    outcome = fit(job, state)
    for observer in job.observers:
        observer.close()
    wind_up(job, state.step)
    return outcome, state.step


@pytest.fixture(scope="module")
def attempt(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFiles]:
    """Runs one attempt of a run in this module's folder; runs of one name are continued."""
    folder = tmp_path_factory.mktemp("training")

    def train(name: str, engine: str, *overrides: str, until: int = 6) -> RunFiles:
        number = len(list((folder / "runs" / name / "attempts").glob("*"))) + 1
        run = tiny_run(folder, (*_ENGINES[engine], *overrides), attempt=number, name=name)
        world_size = read_plan(run.attempt(number).plan).world_size
        answers = ranks.run(world_size, _train, run.root, number, until)
        assert answers == [("finished" if until == 6 else "stopped", until)] * world_size
        return run

    return train


@pytest.fixture(scope="module")
def reference(attempt: Callable[..., RunFiles]) -> RunFiles:
    """One process, plain PyTorch, dropout on: what the others are held against."""
    return attempt("reference", "plain", *_FP32, "steps.save_every=3")


def _losses(run: RunFiles) -> list[float]:
    steps = read_metrics(run.metrics)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    return [line["loss"] for line in steps]


def _digests(run: RunFiles, step: int) -> list[str]:
    """Of each rank's file: they cover the checksums of every parameter and moment."""
    manifest = read_json(run.checkpoints / f"step-{step:08d}" / "manifest.json")
    return [str(file) for file in manifest["files"]]


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_every_engine_and_world_trains_as_one_process_does(
    engine: str, attempt: Callable[..., RunFiles], reference: RunFiles
) -> None:
    run = attempt(f"as-{engine}", engine, *_FP32)
    # Measured: 5e-7. Dropout is the same because micro-batches hold the same samples.
    assert _losses(run) == pytest.approx(_losses(reference), abs=5e-6)
    for key in ("tokens", "terms", "tokens_seen", "learning_rate"):
        ours = [line[key] for line in read_metrics(run.metrics)]
        assert ours == [line[key] for line in read_metrics(reference.metrics)]
    (held_out,), (expected,) = (_held_out(run), _held_out(reference))
    assert held_out["eval_loss"] == pytest.approx(expected["eval_loss"], abs=5e-6)
    assert held_out["eval_token_accuracy"] == expected["eval_token_accuracy"]
    assert _sample(run) == _sample(reference)


def _held_out(run: RunFiles) -> list[dict[str, Any]]:
    lines = [line for line in _all_evals(run) if "eval_loss" in line]
    assert all(line["step"] == 6 for line in lines)
    return lines


def _sample(run: RunFiles) -> Any:
    (sample,) = [line["samples"] for line in _all_evals(run) if "samples" in line]
    return sample


def _all_evals(run: RunFiles) -> list[dict[str, Any]]:
    return [line for line in read_lines(run.metrics) if line["kind"] == "eval"]


@pytest.mark.parametrize("engine", ["plain", "zero2", "zero3"])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    engine: str, attempt: Callable[..., RunFiles]
) -> None:
    ranks = f"resources.ranks_per_node={1 if engine == 'plain' else 2}"
    whole = attempt(f"whole-{engine}", engine, ranks)  # bf16, dropout 0.1
    attempt(f"cut-{engine}", engine, ranks, until=2)
    cut = attempt(f"cut-{engine}", engine, ranks)
    assert [line["attempt"] for line in read_metrics(cut.metrics)] == [1, 1, 2, 2, 2, 2]
    assert _losses(cut) == _losses(whole)
    assert _digests(cut, 6) == _digests(whole, 6)


def test_a_run_goes_on_with_other_ranks_stages_and_engines(
    attempt: Callable[..., RunFiles], reference: RunFiles
) -> None:
    attempt("changed", "zero2", *_FP32, until=2)
    attempt("changed", "zero3", *_FP32, until=4)
    run = attempt("changed", "plain", *_FP32)
    assert _losses(run) == pytest.approx(_losses(reference), abs=5e-6)
    attempts = [line for line in read_lines(run.metrics) if line["kind"] == "attempt"]
    assert [line["world_size"] for line in attempts] == [2, 3, 1]
    assert [line["step"] for line in attempts] == [0, 2, 4]
    assert [line["attempt"] for line in read_metrics(run.metrics)] == [1, 1, 2, 2, 3, 3]


def test_what_happened_stands_in_the_metrics(reference: RunFiles) -> None:
    kinds = [(line["kind"], line.get("step")) for line in read_lines(reference.metrics)]
    steps = [("step", n) for n in range(1, 7)]
    # The save of step 3 ends in the background, some time before the last one begins.
    assert 4 <= kinds.index(("save", 3)) <= kinds.index(("save", 6))
    kinds.remove(("save", 3))
    assert kinds == [("attempt", 0), *steps, ("save", 6), ("eval", 6), ("eval", 6)]
    opened = next(read_lines(reference.metrics))
    for line in read_metrics(reference.metrics):
        rate = line["tokens"] / line["step_s"]
        assert line["tokens_per_second"] == pytest.approx(rate)
        peak = opened["peak_flops_per_rank"] * opened["world_size"]
        assert line["mfu"] == pytest.approx(opened["flops_per_token"] * rate / peak)
        phases = line["data_s"] + line["forward_s"] + line["backward_s"] + line["update_s"]
        assert 0.5 * line["step_s"] < phases <= line["step_s"]
        assert line["terms"] < line["tokens"] == line["row_tokens"] == 6 * 48
        assert line["memory_bytes"] > 10 * 2**20
    assert read_metrics(reference.metrics)[-1]["tokens_seen"] == 6 * 6 * 48
