"""What ranks run for `longhaul verify resume`: an attempt like any other, with a witness beside it.

    python -m trainer.verify.resumed RUN_FOLDER --attempt N

Beside the plan lies resumed.json: {"lose": ITEM or null}. What is left in the attempt's folder:

    loaded/           a checkpoint of the state as it was before the first step
    witness-00000.jsonl  of each rank: per step and micro-batch the samples, and a digest of the
                      generator's state from which dropout is drawn

`lose` throws one item away after it was loaded, so that a person sees the proof find it:

    moments        the optimizer's, set to zero
    cursor         data begin anew at the first sample
    learning_rate  the schedule begins anew at its first step
    rng            randomness begins anew at that of the first step
"""

from __future__ import annotations

import argparse
import threading
import time
import traceback
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from trainer.batch import Batch
from trainer.build import build_job, build_observers
from trainer.checkpoint.store import CheckpointStore
from trainer.data.table import open_sources, open_stream
from trainer.dist.device import choose_device, use_host
from trainer.dist.startup import StartUp
from trainer.dist.world import Place, World, leave, meet
from trainer.errors import Exit
from trainer.job import Job, Stream, TrainState, done_of
from trainer.loop import fit
from trainer.plan import RunPlan, plan_of_attempt
from trainer.records.attempt import Started, error_record, write_first, write_record
from trainer.records.fragment import MASTER
from trainer.records.json_file import append_line, read_json
from trainer.records.run_files import RunFiles
from trainer.tasks.table import change_of

Item = Literal["moments", "cursor", "learning_rate", "rng"]
ITEMS: tuple[Item, ...] = get_args(Item)
ORDER = "resumed.json"
LOADED = "loaded"


def run_attempt(world: World, run: RunFiles, attempt: int, *, lose: Item | None = None) -> int:
    """Train the attempt to its end; the step it went on from. Collective.

    Raises: whatever ends an attempt.
    """
    files, startup = run.attempt(attempt), StartUp()
    plan = plan_of_attempt(files)
    job, state = build_job(plan, world, run=run, stop=threading.Event(), startup=startup)
    first = state.step
    job = _without(lose, job, plan, first) if lose else job
    loaded = CheckpointStore(files.root / LOADED, max_failed_saves=1)
    loaded.save(world, job.engine, step=first, training={"step": first})
    job = _witnessed(job, files.root / f"witness-{world.place.rank:05d}.jsonl")
    if world.place.rank == 0:
        watch = build_observers(plan, run, job=job, state=state, startup=startup)
        job = replace(job, observers=watch)
        write_record(files.started, Started(time.time(), first, world.place.world_size, ""))
    try:
        fit(job, state)
        _finish(job, state, files.done)
    finally:
        for observer in job.observers:
            observer.close()
        job.stream.close()
        job.checkpoints.close()
        job.engine.close()
    return first


def _finish(job: Job, state: TrainState, done: Path) -> None:
    if job.world.place.rank == 0:
        write_record(done, done_of(job, state))


# --- losing something -----------------------------------------------------------------------------


def _without(item: Item, job: Job, plan: RunPlan, first: int) -> Job:
    """The job as if `item` had not been restored; `first`: the step that was loaded."""
    rate, seed = job.learning_rate, job.seed_step
    if item == "learning_rate":
        return replace(job, learning_rate=lambda step: rate(step - first))
    if item == "rng":
        return replace(job, seed_step=lambda step, sample: seed(step - first, sample))
    if item == "cursor":
        job.stream.close()
        anew = {"step": first, "next_sample": 0, "skipped": []}
        stream = open_stream(
            plan, job.world, sources=open_sources(plan), cursor=anew, change=change_of(plan)
        )
        return replace(job, stream=stream)
    for held in job.engine.fragments():
        if held.fragment.kind != MASTER:
            held.values.zero_()
    return job


# --- witness --------------------------------------------------------------------------------------


class _Witnessed:
    """A stream that writes down which samples it hands out."""

    def __init__(self, stream: Stream, path: Path) -> None:
        self._stream = stream
        self._path = path

    def step(self, step: int) -> Sequence[Batch]:
        batches = self._stream.step(step)
        for batch in batches:
            append_line(self._path, {"step": step, "samples": list(batch.sample_indices)})
        return batches

    def cursor(self, step: int) -> dict[str, Any]:
        return self._stream.cursor(step)

    def go_back(self, cursor: dict[str, Any], *, without: tuple[int, int]) -> None:
        self._stream.go_back(cursor, without=without)

    def close(self) -> None:
        self._stream.close()


def _witnessed(job: Job, path: Path) -> Job:
    seed = job.seed_step

    def seed_step(step: int, sample: int) -> None:
        seed(step, sample)
        state = zlib.crc32(torch.get_rng_state().numpy().tobytes())
        append_line(path, {"step": step, "first_sample": sample, "rng": state})

    return replace(job, stream=_Witnessed(job.stream, path), seed_step=seed_step)


# --- as a process ---------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.resumed", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    run = RunFiles(given.run_folder.resolve())
    place = Place.from_env()
    files = run.attempt(given.attempt)
    try:
        plan = plan_of_attempt(files)
        use_host(plan.threads_per_rank, device=plan.device)
        world = meet(place, device=choose_device(plan.device, place))
        run_attempt(world, run, given.attempt, lose=read_json(files.root / ORDER)["lose"])
        leave(world)
    except Exception as e:  # told to whoever started us, in the file that says so
        traceback.print_exc()
        record = error_record(e, rank=place.rank, step=None)
        write_first(files.error, record)
        return record.exit_code
    return int(Exit.DONE)


if __name__ == "__main__":
    raise SystemExit(main())
