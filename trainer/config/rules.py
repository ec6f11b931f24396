"""Rules between sections: each yields Problems. No machine, no tokenizer is asked.

What needs a machine's device, a tokenizer or what a model folder holds is asked by
trainer/planning.py. Only whether there is a model in that folder is asked here: all else would be
said of a typing mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from trainer.config.adapter_rules import adapter_problems
from trainer.config.cloud_rules import cloud_problems
from trainer.config.encoder_decoder_rules import encoder_decoder_problems
from trainer.config.encoder_rules import encoder_problems
from trainer.config.engine_rules import engine_problems
from trainer.config.names import nearest_setting
from trainer.config.nodes_rules import nodes_problems
from trainer.config.peer_rules import peer_problems
from trainer.config.regularize_rules import regularize_problems
from trainer.config.remote_rules import remote_problems
from trainer.config.schema import Config
from trainer.config.sections.data import CustomSource, TrainedTokenizer
from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.model import (
    EncoderDecoderShape,
    EncoderShape,
    FolderModel,
    Model,
    ShapeModel,
)
from trainer.config.sections.tasks import CustomTask
from trainer.config.sections.training import CanonicalEngine, Wsd
from trainer.config.slurm_rules import slurm_problems
from trainer.config.task_rules import task_problems
from trainer.config.watch_rules import watch_problems
from trainer.errors import Problem

Device = Literal["cpu", "cuda"]


def problems(config: Config) -> list[Problem]:
    """Everything that can be said before a machine is known. Empty: nothing is wrong."""
    device = config.resources.device
    return [
        *_model_problems(config),
        *adapter_problems(config),
        *_batch_problems(config),
        *_schedule_problems(config),
        *engine_problems(config, device=None if device == "auto" else device),
        *_data_problems(config),
        *task_problems(config),
        *_trust_problems(config),
        *_resume_problems(config),
        *watch_problems(config),
        *remote_problems(config),
        *peer_problems(config),
        *slurm_problems(config),
        *nodes_problems(config),
        *regularize_problems(config),
        *cloud_problems(config),
    ]


def world_size(config: Config) -> int:
    return config.resources.nodes * config.resources.ranks_per_node


def num_micro_batches(config: Config) -> int:
    """Of a step; the last one may have fewer rows than the others."""
    return -(-config.batch.global_batch_size // config.batch.micro_batch_size)


def _model_problems(config: Config) -> Iterator[Problem]:
    model = config.model
    if isinstance(model, FolderModel):
        yield from _folder_problems(Path(model.path))
        return
    heads = model.num_attention_heads
    if model.hidden_size % heads and model.family != "t5":  # its heads are of any width
        width = -(-model.hidden_size // heads) * heads
        what = f"{model.hidden_size} is not a multiple of num_attention_heads ({heads})"
        yield Problem("model.hidden_size", what, f"model.hidden_size={width}")
    if isinstance(model, EncoderShape):
        yield from encoder_problems(model)
    elif isinstance(model, EncoderDecoderShape):
        yield from encoder_decoder_problems(model)
    else:
        yield from _causal_problems(model)


def _causal_problems(model: ShapeModel) -> Iterator[Problem]:
    heads, grouped = model.num_attention_heads, model.num_key_value_heads
    if heads % grouped:
        what = f"{grouped} does not divide num_attention_heads ({heads})"
        yield Problem("model.num_key_value_heads", what, f"model.num_key_value_heads={heads}")
    if model.family in ("gpt2", "gpt_neox"):
        yield from _ungrouped_problems(model)
    if model.family != "gpt2" and model.rope_theta is None:
        what = f"{model.family} has rotary positions and needs their base"
        yield Problem("model.rope_theta", what, "model.rope_theta=10000.0")
    elif model.family != "gpt2" and model.head_dim % 2:
        what = f"rotary positions need heads of an even width, not {model.head_dim}"
        yield Problem("model.head_dim", what, f"model.head_dim={model.head_dim + 1}")
    for name, families in (("sliding_window", ("mistral",)), ("rotary_fraction", ("gpt_neox",))):
        if getattr(model, name) is not None and model.family not in families:
            what = f"{model.family} has no such setting and would leave it unused"
            yield Problem(f"model.{name}", what, f"model.{name}=null")


def _folder_problems(folder: Path) -> Iterator[Problem]:
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        fix = "model.path=FOLDER, a Hugging Face model folder"
        yield Problem("model.path", f"{folder} is no model folder: it {what}", fix)


def _ungrouped_problems(model: ShapeModel) -> Iterator[Problem]:
    heads = model.num_attention_heads
    if model.num_key_value_heads != heads and not heads % model.num_key_value_heads:
        what = f"{model.family} has as many key heads as query heads ({heads})"
        yield Problem("model.num_key_value_heads", what, f"model.num_key_value_heads={heads}")
    if not model.hidden_size % heads and model.head_dim != model.hidden_size // heads:
        width = model.hidden_size // heads
        what = f"{model.family} heads are hidden_size / num_attention_heads wide: {width}"
        yield Problem("model.head_dim", f"{what}, not {model.head_dim}", f"model.head_dim={width}")


def _batch_problems(config: Config) -> Iterator[Problem]:
    total, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    world = world_size(config)
    share = -(-total // world)
    yield from _count_problems(config)
    if micro > total:
        what = f"{micro:,} rows at a time are more than the {total:,} of a whole step"
        yield Problem("batch.micro_batch_size", what, _work_for_all(config))
    elif isinstance(config.engine, CanonicalEngine):
        yield from _shard_problems(config)
    elif micro > share and micro * world - total >= micro:
        what = (
            f"{micro:,} rows on each of {world:,} ranks are more than the {total:,} of a whole "
            "step, and a rank would have none"
        )
        yield Problem("batch.micro_batch_size", what, _work_for_all(config))


def _work_for_all(config: Config) -> str:
    """Settings with which every rank has rows: smaller micro-batches, or fewer ranks as well."""
    total, nodes, world = config.batch.global_batch_size, config.resources.nodes, world_size(config)
    if world <= total:
        share = -(-total // world)
        idle = share * world - total >= share
        return f"batch.micro_batch_size={total // world if idle else share}"
    fix = f"batch.micro_batch_size=1 resources.ranks_per_node={max(total // nodes, 1)}"
    if nodes <= total:
        return fix
    least = " resources.min_nodes=0" if config.resources.min_nodes > total else ""
    return f"{fix} resources.nodes={total}{least}"


def _count_problems(config: Config) -> Iterator[Problem]:
    """Tokens are counted in 64 bits."""
    steps, rows = config.steps.total, config.batch.global_batch_size
    most = (2**63 - 1) // (rows * config.data.sequence_length)
    if steps > most >= 1:
        what = f"{steps:,} steps of {rows:,} rows are more tokens than 64 bits can count"
        yield Problem("steps.total", what, f"steps.total={most}")
    elif most < 1:
        what = f"{rows:,} rows of a step are more tokens than 64 bits can count"
        yield Problem("batch.global_batch_size", what, "batch.global_batch_size=1024")


def _shard_problems(config: Config) -> Iterator[Problem]:
    """Smaller micro-batches, proposed for other engines, would give other bits."""
    rows, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    shards, world = num_micro_batches(config), world_size(config)
    if world > shards:
        what = (
            f"the canonical engine shares out the {shards} micro-batches of a step ({rows} rows, "
            f"{micro} each), too few for {world} ranks"
        )
        fix = f"resources.ranks_per_node={shards}"
        fix += " resources.nodes=1" if config.resources.nodes > 1 else ""
        yield Problem("engine.kind", what, fix)


def _schedule_problems(config: Config) -> Iterator[Problem]:
    schedule, total = config.schedule, config.steps.total
    per_step = config.batch.global_batch_size * config.data.sequence_length
    if schedule.warmup_steps and schedule.warmup_tokens:
        what = f"warm-up is given twice, here and by warmup_steps={schedule.warmup_steps}"
        yield Problem("schedule.warmup_tokens", what, "schedule.warmup_steps=0")
        return
    if config.steps.epochs is not None:
        return  # how many steps there are is not known yet: epochs.py asks again
    warmup = schedule.warmup_steps or -(-schedule.warmup_tokens // per_step)
    where = "warmup_steps" if schedule.warmup_steps else "warmup_tokens"
    if warmup > total:
        what = f"warm-up takes {warmup:,} steps and the whole run {total:,}"
        tenth = max(total // 10, 1) * (1 if schedule.warmup_steps else per_step)
        yield Problem(f"schedule.{where}", what, f"schedule.{where}={tenth}")
    elif isinstance(schedule, Wsd) and warmup + round(schedule.decay_fraction * total) > total:
        what = (
            f"{schedule.decay_fraction} of {total:,} steps and a warm-up of {warmup:,} are more "
            "than the run"
        )
        fix = f"schedule.decay_fraction={(total - warmup) / total:.2g}"
        yield Problem("schedule.decay_fraction", what, fix)


def _data_problems(config: Config) -> Iterator[Problem]:
    data, model = config.data, config.model
    if isinstance(model, ShapeModel) and data.sequence_length > model.max_position_embeddings:
        limit = model.max_position_embeddings
        what = f"rows of {data.sequence_length:,} tokens, but the model has {limit:,} positions"
        yield Problem("data.sequence_length", what, f"data.sequence_length={limit}")
    if isinstance(data.tokenizer, TrainedTokenizer):
        yield from _own_tokenizer_problems(model, data.tokenizer)
    given = isinstance(data, ExamplesSection) and len(data.held_out) == len(data.sources)
    if config.evals.held_out_rows and not data.held_out_fraction and not given:
        held = "example" if isinstance(data, ExamplesSection) else "text"
        what = f"no {held} is held out, so there is nothing to evaluate on"
        yield Problem("data.held_out_fraction", what, "data.held_out_fraction=0.01 or evals=none")


def _own_tokenizer_problems(model: Model, tokenizer: TrainedTokenizer) -> Iterator[Problem]:
    if isinstance(model, FolderModel) and model.weights == "pretrained":
        what = "a new tokenizer, but the model's weights know another vocabulary"
        fix = f"data/tokenizer=pretrained data.tokenizer.path={model.path}"
        yield Problem("data.tokenizer", what, fix)
    elif isinstance(model, ShapeModel) and 0 < model.vocab_size < tokenizer.vocab_size:
        what = (
            f"{tokenizer.vocab_size:,} tokens, but the model's embedding has "
            f"{model.vocab_size:,} entries"
        )
        yield Problem("data.tokenizer.vocab_size", what, "model.vocab_size=0")


def _trust_problems(config: Config) -> Iterator[Problem]:
    named = [
        (f"data.sources.{name}.target", source.target)
        for name, source in config.data.sources.items()
        if isinstance(source, CustomSource)
    ]
    if isinstance(config.task, CustomTask):
        named.append(("task.target", config.task.target))
    for where, target in named:
        package = target.partition(":")[0].partition(".")[0]
        if package not in config.run.trust:
            trusted = ",".join([*config.run.trust, package])
            what = f"{target} would run code of the package {package}, which is not trusted"
            yield Problem(where, what, f"run.trust=[{trusted}]")


def _resume_problems(config: Config) -> Iterator[Problem]:
    known = list(_dotted(config.model_dump()))
    for name in config.resume.allow:
        if not any(k == name or k.startswith(f"{name}.") for k in known):
            near = nearest_setting(name, known)
            hint = f"; did you mean {near}?" if near else ""
            fix = f"resume.allow=[{near}]" if near else "resume.allow=[]"
            yield Problem("resume.allow", f"{name} is no setting{hint}", fix)


def _dotted(values: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
