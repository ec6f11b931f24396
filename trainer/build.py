"""The plan -> the live parts of one rank: the only file that knows what stands behind a setting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.best import Best
from trainer.cadence import SaveWhenBest
from trainer.checkpoint.peer.tier import peers_of
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.uploads import Remote
from trainer.config.rules import num_micro_batches
from trainer.config.sections.model import FolderModel
from trainer.config.sections.training import CanonicalEngine, PlainEngine
from trainer.data.table import open_sources, open_stream
from trainer.dist.device import Peak, memory_meter, peak_of
from trainer.dist.seeds import step_seeder
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.engine import canonical, plain
from trainer.engine.base import Engine
from trainer.engine.model_setup import weight_dtype
from trainer.errors import ConfigError, Problem
from trainer.evals.held_out import HeldOut
from trainer.evals.table import evals_of
from trainer.faultpoints import faultpoint
from trainer.guard.guard import Guard
from trainer.guard.incident import Incidents
from trainer.job import Eval, Every, Job, SaveTimes, StopFlag, TrainState, restored
from trainer.meter import Meter
from trainer.models import starting
from trainer.models.attention import check_packing
from trainer.models.build import build_model, keep_reference
from trainer.models.language_model import compile_model
from trainer.models.merged import has_frozen
from trainer.models.mixout import mix_out
from trainer.models.starting import StartingValues
from trainer.models.wrappers import AnyModel
from trainer.observers.base import Observer
from trainer.observers.table import observers_of
from trainer.optim.layers import Layers
from trainer.optim.optimizers import make_optimizer
from trainer.plan import RunPlan
from trainer.records.frozen_folder import hold_on_to
from trainer.records.lineage import write_loaded
from trainer.records.run_files import RunFiles
from trainer.schedules import learning_rate
from trainer.storage.remote import joined
from trainer.tasks.table import (
    change_of,
    has_reference,
    head_of,
    reads_prompts_whole,
    task_of,
    trained_task,
)

# What matrix products compute in, where it is not bf16: the peak that MFU is a fraction of.
_COMPUTE = {"fp32": torch.float32, "fp16": torch.float16}


def build_job(
    plan: RunPlan, world: World, *, run: RunFiles, stop: StopFlag, startup: StartUp
) -> tuple[Job, TrainState]:
    """All but the observers; the newest checkpoint, or the starting values, are loaded. Collective.

    Raises: DataError, ModelError, ConfigError, CheckpointError.
    """
    faultpoint("start.met")
    config = plan.config
    sources = world.each(lambda: open_sources(plan))
    if config.data.packing or config.task.shares_rows:
        whole = reads_prompts_whole(config.task)
        world.each(lambda: check_packing(config.model, device=world.device, prefix_lm=whole))
    frozen = _frozen_folder(plan)
    if frozen is not None:
        world.lead(lambda: hold_on_to(frozen, run.frozen))
    engine = build_engine(plan, world)
    startup.lap("build")
    checkpoints = open_checkpoints(plan, run)
    state, saved = _resume(plan, world, engine=engine, checkpoints=checkpoints)
    if world.place.rank == 0:
        _note_loaded(plan, run, state.step, checkpoints)
    startup.lap("load")
    faultpoint("start.loaded")
    cursor = saved.get("cursor")
    stream = world.each(
        lambda: open_stream(plan, world, sources=sources, cursor=cursor, change=change_of(plan))
    )
    task = task_of(plan)
    evals = world.each(lambda: evals_of(plan, task, stream=stream, sources=sources))
    startup.lap("data")
    job = Job(
        world=world,
        engine=engine,
        task=trained_task(plan),
        stream=stream,
        checkpoints=checkpoints,
        stop=stop,
        total_steps=config.steps.total,
        pause_at=config.steps.pause_at,
        save=_save_times(plan, world, run=run, step=state.step, saved=saved.get("save")),
        evals=evals,
        observers=(),
        learning_rate=learning_rate(
            config.schedule,
            config.optimizer.learning_rate,
            total_steps=config.steps.total,
            tokens_per_step=plan.tokens_per_step,
        ),
        seed_step=step_seeder(config.run.seed),
        meter=_meter(plan, world),
        guard=Guard(config.guard, saved.get("guard")),
        incidents=_incidents(plan, world, run),
        best=_best(plan, world, engine=engine, evals=evals, saved=saved.get("best")),
        pulse=startup.pulse,
    )
    startup.lap("peak")
    return job, state


# --- model, engine, checkpoints ------------------------------------------------------------------


def build_engine(plan: RunPlan, world: World) -> Engine:
    """An engine whose parameters are still to be filled by `load`. Collective."""
    config = plan.config
    make_model = partial(_make_model, plan, world.device)
    regularize = config.regularize
    layers = Layers(regularize.layer_decay, regularize.unfreeze_every, config.steps.total)
    make = partial(make_optimizer, config.optimizer, layers=layers)
    average = regularize.ema
    if isinstance(config.engine, PlainEngine):
        return plain.PlainEngine(
            make_model,
            make,
            device=world.device,
            precision=config.precision,
            max_grad_norm=config.optimizer.max_grad_norm,
            average=average,
        )
    if isinstance(config.engine, CanonicalEngine):
        return canonical.CanonicalEngine(
            make_model,
            make,
            world=world,
            engine=config.engine,
            precision=config.precision,
            max_grad_norm=config.optimizer.max_grad_norm,
            num_shards=num_micro_batches(config),
            average=average,
        )
    # Not imported for the others: deepspeed costs half a second.
    from trainer.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(
        make_model,
        make,
        world=world,
        engine=config.engine,
        precision=config.precision,
        optimizer=config.optimizer,
        micro_batch_size=config.batch.micro_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        timeout_s=config.resources.collective_timeout_s,
        average=average,
    )


def _frozen_folder(plan: RunPlan) -> Path | None:
    """Where values come from at every start, because no checkpoint has them."""
    model = plan.config.model
    mixes = plan.config.regularize.mixout > 0
    is_needed = has_frozen(model) or has_reference(plan.config.task) or mixes
    if not is_needed or not isinstance(model, FolderModel) or model.weights == "fresh":
        return None
    return Path(model.path)


def starting_values(plan: RunPlan, engine: Engine) -> StartingValues:
    """What parameters are before step 1."""
    model: Any = getattr(engine.model, "module", engine.model)  # without DeepSpeed's wrapper
    return starting.starting_values(plan.config.model, model, seed=plan.config.run.seed)


def open_checkpoints(plan: RunPlan, run: RunFiles) -> CheckpointStore:
    section = plan.config.checkpoint
    return CheckpointStore(
        run.checkpoints,
        attempt=plan.attempt,
        run_hash=plan.run_id,
        keep_last=section.keep_last,
        keep_every=section.keep_every,
        max_failed_saves=section.max_failed_saves,
        asynchronous=section.asynchronous,
        when_busy=section.when_busy,
        writer_timeout_s=section.writer_timeout_s,
        checksum_source=section.checksum_source,
        drills=plan.config.drills.enabled,
        expected_bytes=plan.checkpoint_bytes,
        remote=remote_of(plan),
        peers=peers_of(
            section.peer.every,
            folder=section.peer.folder,
            run_id=plan.run_id,
            ranks_per_node=plan.config.resources.ranks_per_node,
        ),
        origin={"engine": engine_name(plan), "precision": plan.config.precision.kind},
    )


def _note_loaded(plan: RunPlan, run: RunFiles, step: int, checkpoints: CheckpointStore) -> None:
    """What the attempt goes on from, in the run's lineage."""
    found = checkpoints.loaded_from
    write_loaded(
        run.lineage,
        attempt=plan.attempt,
        step=step,
        checkpoints=run.checkpoints,
        memory=None if found is None else (found.where, found.checkpoint, found.attempt),
    )


def _save_times(
    plan: RunPlan, world: World, *, run: RunFiles, step: int, saved: dict[str, Any] | None
) -> SaveTimes:
    every = plan.config.steps.save_every
    if every != "auto":
        return Every(every)
    return SaveWhenBest(
        world,
        checkpoint_bytes=plan.checkpoint_bytes,
        asynchronous=plan.config.checkpoint.asynchronous,
        attempts_log=run.attempts_log,
        step=step,
        saved=saved,
        nodes_in_memory=plan.config.resources.nodes if plan.config.checkpoint.peer.every else 0,
    )


def _best(
    plan: RunPlan,
    world: World,
    *,
    engine: Engine,
    evals: Sequence[Eval],
    saved: dict[str, Any] | None,
) -> Best:
    """Raises: ConfigError if evaluations cannot decide: there is none, or not of that metric."""
    best = Best(plan.config.regularize.early_stopping, saved)
    held_out = [one for one in evals if isinstance(one, HeldOut)]
    if not best.decides:
        return best
    if not held_out:
        where = "regularize.early_stopping.patience"
        what = "no row is held out of these data, so that no evaluation could tell when to stop"
        raise ConfigError([Problem(where, what, f"{where}=0, or a larger data.held_out_fraction")])
    best.value_of(dict.fromkeys(held_out[0].names(world, engine), 0.0))
    return best


def remote_of(plan: RunPlan) -> Remote | None:
    """Where saved steps are copied to: the run's folder under the URL of the settings."""
    section = plan.config.checkpoint.remote
    if section.url is None:
        return None
    return Remote(
        url=joined(section.url, plan.config.run.name),
        options=section.options,
        every=section.every,
        keep_last=section.keep_last,
        timeout_s=section.timeout_s,
        drain_s=section.drain_s,
    )


def _incidents(plan: RunPlan, world: World, run: RunFiles) -> Incidents:
    facts = {
        "attempt": plan.attempt,
        "run_id": plan.run_id,
        "engine": engine_name(plan),
        "precision": plan.config.precision.kind,
        "device": str(world.device),
        "seed": plan.config.run.seed,
    }
    return Incidents(run.incidents, world.place.rank, facts)


def engine_name(plan: RunPlan) -> str:
    engine = plan.config.engine
    return f"zero{engine.stage}" if engine.kind == "deepspeed" else engine.kind


def _make_model(plan: RunPlan, device: torch.device) -> AnyModel:
    """On the meta device: the engine makes storage, `load` gives values."""
    section, dtype = plan.config.model, weight_dtype(plan.config.precision.kind)
    model = build_model(
        section, vocab_size=plan.vocab_size, dtype=dtype, device=device, head=head_of(plan)
    )
    if has_reference(plan.config.task):
        keep_reference(model, section, vocab_size=plan.vocab_size, dtype=dtype, device=device)
    if rate := plan.config.regularize.mixout:
        mix_out(model, rate=rate, seed=plan.config.run.seed)
    starting.keep_frozen_values(model, section, seed=plan.config.run.seed)
    if section.compile:
        differ = plan.config.task.data == "examples" or plan.decoder_start_id is not None
        compile_model(model.layers, rows_differ=differ)
    return model


def _resume(
    plan: RunPlan, world: World, *, engine: Engine, checkpoints: CheckpointStore
) -> tuple[TrainState, dict[str, Any]]:
    """The loop's state, and all that was saved with it; nothing for a run that begins."""
    found = checkpoints.load_latest(world, engine)
    if found is None:
        source = starting_values(plan, engine)
        if source.said and world.place.rank == 0:
            print(source.said, flush=True)
        engine.load(source, step=0)
        return TrainState(), {}
    return restored(found), found


# --- who watches ---------------------------------------------------------------------------------


def build_observers(
    plan: RunPlan, run: RunFiles, *, job: Job, state: TrainState, startup: StartUp
) -> list[Observer]:
    """For rank 0 alone; observers/table.py has the table."""
    meter, facts = job.meter, startup.facts()
    facts |= {
        "step": state.step,
        "world_size": plan.world_size,
        "device": str(job.world.device),
        "engine": engine_name(plan),
        "precision": plan.config.precision.kind,
        "num_parameters": plan.num_parameters,
        "tokens_per_step": plan.tokens_per_step,
        "flops_per_token": meter.flops_per_token,
        "peak_flops_per_rank": meter.peak.flops,
        "peak_source": meter.peak.source,
        "mfu_is": "flops_per_token * tokens / (step_s * peak_flops_per_rank * world_size)",
    }
    return observers_of(plan, run, first_step=state.step + 1, facts=facts)


def _meter(plan: RunPlan, world: World) -> Meter:
    config = plan.config
    dtype = _COMPUTE.get(config.precision.kind, torch.bfloat16)
    mine = peak_of(world.device, dtype, given_tflops=config.observers.peak_tflops)
    mean = world.sum([mine.flops])[0] / world.place.world_size
    return Meter(
        flops_per_token=plan.flops_per_token,
        peak=Peak(mean, mine.source),
        row_tokens_per_step=config.batch.global_batch_size * config.data.sequence_length,
        memory_bytes=memory_meter(world.device),
        world_size=world.place.world_size,
    )
