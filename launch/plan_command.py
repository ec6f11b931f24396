"""`longhaul plan`: the numbers of a run, before anything is started."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import compose as door
from launch.nodes_of import cores_for, device_of
from launch.settings.choices import Folders
from trainer.capacity.folder import vocab_size_of_tokenizer
from trainer.config.schema import Config
from trainer.config.sections.data import PretrainedTokenizer
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import DataError, Exit, Refused
from trainer.fit import fit as search
from trainer.plan import RunPlan, StorePlan
from trainer.planning import judged, make_plan
from trainer.records.prepared import find_prepared, prepared_vocab_size
from trainer.records.sizes import bytes_of, size_text

_NOT_IN_TOTAL = ("host", "staging", "kept")
_FIT_CHOICES = ("zero1", "zero2", "zero3", "zero3_offload_cpu")


def run(
    argv_overrides: Sequence[str],
    config_dirs: Sequence[str] = (),
    *,
    why: str | None = None,
    fit: str | None = None,
    json: bool = False,
) -> int:
    """Print the plan; with `why` who set a setting; with `fit` ("80GB") what fits that memory.

    Raises: ConfigError with every problem; Refused for a bad --why or --fit, or if nothing fits.
    """
    overrides = list(argv_overrides)
    if fit is not None and not any(o.startswith("batch.micro_batch_size=") for o in overrides):
        overrides.append("batch.micro_batch_size=1")  # any valid one: it is to be chosen
    if why is not None:
        traced = door.compose(overrides, config_dirs=config_dirs, trace=True, may_lack=True)
        print(door.why(traced, why))
        return Exit.DONE
    config = judged(door.compose(overrides, config_dirs=config_dirs).values)
    chosen: tuple[str, ...] = ()
    if fit is not None:
        chosen = _fitting(config, fit, overrides, config_dirs)
        config = judged(door.compose([*overrides, *chosen], config_dirs=config_dirs).values)
    plan = plan_of(config)
    print(_as_json(plan, chosen) if json else as_text(plan, chosen))
    if not json:
        _show_differences(config)
    return Exit.DONE


def _show_differences(config: Config) -> None:
    from launch.stand import differences_text  # which needs this module

    text = differences_text(config)
    if text:
        print(f"\n{text}")


def plan_of(config: Config) -> RunPlan:
    """The first attempt's plan on this machine, with the stores that are prepared already."""
    stores, vocab = _stores(config)
    return make_plan(
        config,
        attempt=1,
        run_id="not started",
        stores=stores,
        device=device_of(config),
        cores=cores_for(config),
        vocab_size_of_tokenizer=vocab,
    )


def _stores(config: Config) -> tuple[list[StorePlan], int | None]:
    """Prepared stores, and the tokenizer's vocabulary where it is known."""
    try:
        found = find_prepared(config.model_dump(mode="json"))
    except DataError:  # `plan` answers without data; `train` will say what is missing
        found = None
    if found:
        stores = [StorePlan(**vars(store)) for store in found]
        data = config.data.model_dump(mode="json")
        return stores, prepared_vocab_size(Path(found[0].path), data=data)
    if isinstance(config.data.tokenizer, PretrainedTokenizer):
        return [], vocab_size_of_tokenizer(Path(config.data.tokenizer.path))
    return [], None


def _fitting(
    config: Config, memory: str, overrides: list[str], config_dirs: Sequence[str]
) -> tuple[str, ...]:
    budget = bytes_of(memory)
    if budget is None or not any(letter.isalpha() for letter in memory):  # 80 is not 80 bytes
        raise Refused(f"--fit {memory}: give a memory size, as in --fit 80GB or --fit 24GiB")
    names = set(_FIT_CHOICES) & set(Folders.find(config_dirs).choices("engine"))
    values = (
        (name, door.compose([*overrides, f"engine={name}"], config_dirs=config_dirs).values)
        for name in _FIT_CHOICES
        if name in names
    )
    engines = {name: DeepSpeedEngine.model_validate(v["engine"]) for name, v in values}
    _, vocab = _stores(config)
    found = search(
        config,
        budget,
        device=device_of(config),
        vocab_size_of_tokenizer=vocab,
        engines=engines,
    )
    return found.overrides


def _as_json(plan: RunPlan, chosen: tuple[str, ...]) -> str:
    values: dict[str, Any] = plan.model_dump(mode="json")
    values["memory_per_rank"]["total"] = plan.memory_per_rank.total
    if chosen:
        values["fit"] = list(chosen)
    return json_format.dumps(values, indent=2)


def as_text(plan: RunPlan, chosen: tuple[str, ...]) -> str:
    blocks = [_run_lines(plan), _batch_lines(plan), _memory_lines(plan)]
    if chosen:
        blocks.append([f"add to the command line: {' '.join(chosen)}"])
    return "\n\n".join("\n".join(block) for block in blocks)


def _parameters(plan: RunPlan) -> str:
    every, trained = f"{plan.num_parameters:,} parameters", plan.num_trained
    if plan.config.model.adapter.kind == "none":
        return every
    return f"{every}, {trained:,} trained ({100 * trained / plan.num_parameters:.2g} %)"


def _run_lines(plan: RunPlan) -> list[str]:
    config, resources = plan.config, plan.config.resources
    tokens = plan.tokens_per_step * config.steps.total
    rows = [
        ("run", f"{config.run.name} in {config.run.root}"),
        ("model", f"{_parameters(plan)}, vocabulary {plan.vocab_size:,}"),
        (
            "world",
            f"{plan.world_size} ranks: {resources.nodes} x {resources.ranks_per_node} on "
            f"{plan.device}, {plan.threads_per_rank} threads each",
        ),
        ("engine", f"{_engine(config)}, {config.precision.kind}, {config.optimizer.kind}"),
        ("steps", f"{config.steps.total:,} steps, {tokens:,} tokens{_epochs(plan, tokens)}"),
        (
            "compute",
            f"{plan.flops_per_token / 1e6:,.1f} MFLOP a token (6 N + 12 L d T), "
            f"{plan.flops_per_token * tokens:.2e} FLOP in all",
        ),
        ("checkpoint", f"{size_text(plan.checkpoint_bytes)} each, {_kept(config)}"),
    ]
    return [f"{name:<12}{text}" for name, text in rows]


def _engine(config: Config) -> str:
    engine = config.engine
    if not isinstance(engine, DeepSpeedEngine):
        return engine.kind
    offload = engine.offload_optimizer
    return f"ZeRO-{engine.stage}" + (f" with offload to {offload}" if offload != "none" else "")


def _epochs(plan: RunPlan, tokens: int) -> str:
    known = sum(store.train_tokens for store in plan.stores)
    return f" ({tokens / known:.2f} x the {known:,} prepared)" if known else " (data not prepared)"


def _kept(config: Config) -> str:
    every, keep = config.steps.save_every, config.checkpoint.keep_last
    if every == "auto":
        return f"as often as pays, the newest {keep} kept"
    how = f"every {every:,} steps" if every else "only at the end"
    return f"{how}, the newest {keep} kept"


def _batch_lines(plan: RunPlan) -> list[str]:
    batch = plan.config.batch
    made = (
        f"{batch.micro_batch_size} rows x {plan.world_size} ranks x "
        f"{plan.gradient_accumulation_steps} micro-steps"
    )
    if plan.padding_rows:
        made += f" - {plan.padding_rows} rows of weight zero"
    rows, row = batch.global_batch_size, plan.config.data.sequence_length
    return [
        f"a step      {rows:,} rows = {made}",
        f"            {plan.tokens_per_step:,} tokens = {rows:,} rows of {row:,}",
    ]


def _memory_lines(plan: RunPlan) -> list[str]:
    memory = plan.memory_per_rank
    checkpointing = plan.config.model.activation_checkpointing
    notes = {
        "buffers": "communication",
        "activations": f"activation checkpointing {'on' if checkpointing else 'off'}",
    }
    parts = [n for n in type(memory).model_fields if n not in _NOT_IN_TOTAL]
    lines = ["memory of a rank (estimate)"]
    lines += [_memory_line(name, getattr(memory, name), notes.get(name, "")) for name in parts]
    lines.append(_memory_line("total", memory.total, ""))
    if memory.host:
        lines.append(_memory_line("offloaded", memory.host, "on the host, not in the total"))
    if memory.staging:
        note = "for background saves, on the host, not in the total"
        lines.append(_memory_line("staging", memory.staging, note))
    if memory.kept:
        where = plan.config.checkpoint.peer.folder
        lines.append(_memory_line("kept", memory.kept, f"states in {where}, not in the total"))
    return lines


def _memory_line(name: str, num_bytes: int, note: str) -> str:
    return f"  {name:<12}{size_text(num_bytes):>12}   {note}".rstrip()
