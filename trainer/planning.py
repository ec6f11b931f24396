"""Config -> RunPlan: every number of one attempt. Pure, but for a folder model's config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from trainer.capacity.folder import shape_of_folder
from trainer.capacity.head import BLOCK_ELEMENTS
from trainer.capacity.memory import (
    Layout,
    MicroBatch,
    checkpoint_bytes,
    memory_per_rank,
)
from trainer.capacity.shape import Shape, flops_per_token, num_parameters
from trainer.capacity.trainable import num_trained
from trainer.config.engine_rules import engine_problems
from trainer.config.explain import validate
from trainer.config.rules import world_size
from trainer.config.schema import Config
from trainer.config.sections.data import DataSection, TrainedTokenizer
from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.model import EncoderDecoderShape, EncoderShape, FolderModel
from trainer.config.sections.tasks import (
    ClassifyTask,
    PreferenceTask,
    RelationsTask,
    Task,
)
from trainer.config.sections.training import CanonicalEngine, DeepSpeedEngine, Sgd
from trainer.epochs import in_steps
from trainer.errors import ConfigError, ModelError, Problem
from trainer.model_shape import (
    adaptation_of,
    adapter_misfits,
    of_an_encoder,
    of_an_encoder_decoder,
    prefix_misfits,
    target_tokens,
    two_stacks,
)
from trainer.plan import MemoryPlan, RunPlan, StorePlan
from trainer.records.decoder_start import decoder_start

VOCAB_MULTIPLE = 64  # matrix kernels want it; the entries added are never a target
MIN_TRAINED_VOCAB = 257  # every byte and the end of text


def make_plan(
    config: Config,
    *,
    attempt: int,
    run_id: str,
    stores: Sequence[StorePlan],
    device: Literal["cpu", "cuda"],
    cores: int,
    vocab_size_of_tokenizer: int | None,
) -> RunPlan:
    """The plan of one attempt on nodes with `cores` cores each. Allocates nothing.

    `vocab_size_of_tokenizer` None: nothing is prepared yet; the setting of a tokenizer to be
    trained stands for it.
    Raises: ConfigError for what the device, the tokenizer or the model folder makes impossible.
    """
    config = in_steps(config, stores)
    shape, problems = _checked_shape(config, vocab_size_of_tokenizer, stores)
    problems += engine_problems(config, device=device)
    problems += _too_small_stores(config, stores)
    if problems:
        raise ConfigError(problems)
    assert shape is not None
    world = world_size(config)
    steps, padding = micro_steps(config, world)
    layout = layout_of(config, world)
    memory = memory_per_rank(shape, layout, batch=micro_batch_of(config, device=device))
    row = config.data.sequence_length
    return RunPlan(
        config=config,
        attempt=attempt,
        run_id=run_id,
        world_size=world,
        device=device,
        threads_per_rank=threads_per_rank(config, cores, device=device),
        gradient_accumulation_steps=steps,
        padding_rows=padding,
        tokens_per_step=round(config.batch.global_batch_size * tokens_of_row(config, stores)),
        vocab_size=shape.vocab_size,
        num_parameters=num_parameters(shape),
        num_trained=num_trained(shape),
        flops_per_token=flops_per_token(shape, row) * (4 / 3 if layout.reference else 1),
        memory_per_rank=MemoryPlan(**asdict(memory)),
        checkpoint_bytes=checkpoint_bytes(shape, layout),
        stores=tuple(stores),
        decoder_start_id=decoder_start_of(config),
    )


def decoder_start_of(config: Config) -> int | None:
    """What every target begins with; None of models that are no encoder-decoders."""
    return decoder_start(config.model.model_dump(mode="json"))


def judged(values: dict[str, Any]) -> Config:
    """`validate`, with what is wrong with a model's folder in the same list, first.

    Raises: ConfigError with every problem.
    """
    try:
        return validate(values)
    except ConfigError as e:
        raise ConfigError([*_folder_problems(values, e.problems), *e.problems]) from None


def _folder_problems(values: dict[str, Any], said: Sequence[Problem]) -> list[Problem]:
    """Without settings that could be checked, the model's own section is judged alone."""
    if any(p.where == "model" or p.where.startswith("model.") for p in said):
        return []
    model = values.get("model")
    if not isinstance(model, dict) or model.get("kind") != "folder":
        return []
    try:
        shape_of_folder(Path(str(model["path"])), needs_weights=model["weights"] == "pretrained")
    except ModelError as e:
        return [Problem("model.path", str(e), "")]
    return []


def replanned(plan: RunPlan, *, nodes: int) -> RunPlan:
    """The same attempt on another number of nodes: the same steps, cut up for another world.

    Raises: ConfigError if the engine cannot have so many ranks, or so few.
    """
    config, device = plan.config, plan.device
    world = nodes * config.resources.ranks_per_node
    shape = shape_of(config, vocab_size_of_tokenizer=plan.vocab_size, stores=plan.stores)
    steps, padding = micro_steps(config, world)
    layout = layout_of(config, world)
    memory = memory_per_rank(shape, layout, batch=micro_batch_of(config, device=device))
    changed = {
        "world_size": world,
        "gradient_accumulation_steps": steps,
        "padding_rows": padding,
        "memory_per_rank": MemoryPlan(**asdict(memory)),
        "checkpoint_bytes": checkpoint_bytes(shape, layout),
    }
    return plan.model_copy(update=changed)


def tokens_of_row(config: Config, stores: Sequence[StorePlan]) -> float:
    """Of text every one counts; of examples those that are no padding, on average by weight.

    Before examples are prepared: as many as there is room for.
    """
    known = [store for store in stores if store.train_rows]
    if isinstance(config.data, DataSection) or not known:
        return config.data.sequence_length
    weight = sum(store.weight for store in known)
    return sum(s.weight * s.train_tokens / s.train_rows for s in known) / weight


def _too_small_stores(config: Config, stores: Sequence[StorePlan]) -> list[Problem]:
    """A row of text needs one token more than it is long: the last label."""
    if not isinstance(config.data, DataSection):
        return []
    row = config.data.sequence_length
    return [
        Problem(
            f"data.sources.{store.source}",
            f"it has {store.train_tokens:,} tokens to train on, not enough for one row of {row:,}",
            f"data.sequence_length={max(2, store.train_tokens - 1)}, or more text",
        )
        for store in stores
        if config.data.packing and store.train_tokens <= row
    ]


def micro_steps(config: Config, world: int) -> tuple[int, int]:
    """(micro-steps of a step, rows of weight zero in it): all ranks run equally many."""
    per_pass = config.batch.micro_batch_size * world
    steps = -(-config.batch.global_batch_size // per_pass)
    return steps, steps * per_pass - config.batch.global_batch_size


def threads_per_rank(config: Config, cores: int, *, device: Literal["cpu", "cuda"]) -> int:
    if device == "cpu" and isinstance(config.engine, CanonicalEngine):
        return 1  # the same bits on any number of ranks, so on any number of cores a rank
    return config.resources.threads_per_rank or max(1, cores // config.resources.ranks_per_node)


def shape_of(
    config: Config, *, vocab_size_of_tokenizer: int | None, stores: Sequence[StorePlan] = ()
) -> Shape:
    """The model's shape with its vocabulary decided, and the head that its task needs.

    Raises: ConfigError if the folder is no usable model, the tokenizer has more tokens than the
    embedding entries, or rows are longer than the model's positions.
    """
    shape, problems = _checked_shape(config, vocab_size_of_tokenizer, stores)
    if shape is None or problems:
        raise ConfigError(problems)
    return shape


def layout_of(config: Config, world: int) -> Layout:
    engine, optimizer = config.engine, config.optimizer
    zero = engine if isinstance(engine, DeepSpeedEngine) else None
    canonical = engine if isinstance(engine, CanonicalEngine) else None
    sends = zero or canonical
    return Layout(
        world_size=world,
        stage=zero.stage if zero else 1 if canonical else None,
        canonical=canonical is not None,
        precision=config.precision.kind,
        accumulate_in_fp32=config.precision.accumulate_in == "fp32"
        and micro_steps(config, world)[0] > 1,
        optimizer=optimizer.kind,
        has_momentum=not isinstance(optimizer, Sgd) or optimizer.momentum > 0,
        offload_optimizer=zero.offload_optimizer if zero else "none",
        offload_parameters=zero.offload_parameters if zero else "none",
        overlap_communication=zero.overlap_communication if zero else False,
        bucket_elements=sends.bucket_elements if sends else 0,
        prefetch_elements=zero.prefetch_elements if zero else 0,
        persistence_threshold_elements=zero.persistence_threshold_elements if zero else 0,
        background_saves=config.checkpoint.asynchronous,
        kept_states=_kept_states(config),
        average=config.regularize.ema.decay > 0,
        starting=config.regularize.mixout > 0,
        reference=isinstance(config.task, PreferenceTask) and config.task.loss == "dpo",
    )


def _kept_states(config: Config) -> int:
    """Two generations of a node's own, and two of its neighbour's where there is one."""
    if not config.checkpoint.peer.every:
        return 0
    return 4 if config.resources.nodes > 1 else 2


def micro_batch_of(config: Config, *, device: Literal["cpu", "cuda"]) -> MicroBatch:
    model = config.model
    dropout = 0.0 if isinstance(model, FolderModel) else model.dropout
    return MicroBatch(
        rows=config.batch.micro_batch_size,
        row_tokens=config.data.sequence_length,
        checkpointing=model.activation_checkpointing,
        chunk_tokens=model.loss_chunk_tokens,
        # torch has no fused attention with dropout for CPUs and falls back to whole scores.
        eager_attention=model.attention == "eager" or (device == "cpu" and dropout > 0),
        block_elements=BLOCK_ELEMENTS[device],
        target_tokens=target_tokens(config),
    )


def _checked_shape(
    config: Config, vocab_size_of_tokenizer: int | None, stores: Sequence[StorePlan]
) -> tuple[Shape | None, list[Problem]]:
    tokens = vocab_size_of_tokenizer
    if tokens is None and isinstance(config.data.tokenizer, TrainedTokenizer):
        tokens = config.data.tokenizer.vocab_size
    model = config.model
    if isinstance(model, FolderModel):
        try:
            shape = shape_of_folder(Path(model.path), needs_weights=model.weights == "pretrained")
        except ModelError as e:
            return None, [Problem("model.path", str(e), "")]
        if 0 < model.vocab_size < shape.vocab_size:
            return shape, [_smaller(model, shape)]
        shape = replace(shape, vocab_size=model.vocab_size or shape.vocab_size)
    else:
        padded = -(-(tokens or 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        fields = model.model_dump(include=set(Shape.__dataclass_fields__))
        if isinstance(model, EncoderShape):
            fields |= of_an_encoder(model)
        elif isinstance(model, EncoderDecoderShape):
            fields |= of_an_encoder_decoder(model)
        shape = Shape(**fields | {"vocab_size": model.vocab_size or padded})
    if not fits_head(shape, config.task):
        return None, [_wrong_model(config, shape)]
    shape = _under_head(shape, config, stores)
    if shape.is_encoder_decoder:
        shape = replace(shape, **two_stacks(config))
    shape = replace(shape, adaptation=adaptation_of(model.adapter))
    return shape, [
        *_misfits(config, shape, tokens),
        *adapter_misfits(config, shape),
        *prefix_misfits(config, shape),
    ]


def _under_head(shape: Shape, config: Config, stores: Sequence[StorePlan]) -> Shape:
    if shape.is_encoder:
        return replace(shape, head=config.task.head, num_labels=num_outputs(config, stores))
    if config.task.head == "reward":
        return replace(shape, head="reward", num_labels=1, tie_word_embeddings=False)
    return shape


def num_outputs(config: Config, stores: Sequence[StorePlan]) -> int:
    """Of a head that has labels; two as long as nobody knows them."""
    data = config.data
    if isinstance(config.task, ClassifyTask) and config.task.answers == "regression":
        return 1
    named = data.labels if isinstance(data, ExamplesSection) else None
    return len((stores[0].labels if stores else ()) or named or ("a", "b"))


def fits_head(shape: Shape, task: Task) -> bool:
    """Next tokens are predicted by decoders, texts from texts by encoder-decoders as well, and
    everything else that there is by encoders.
    """
    if shape.is_encoder_decoder:
        return task.on_encoder_decoders
    if task.head == "seq2seq":
        return False
    return shape.is_encoder != (task.head in ("next_token", "reward"))


def _wrong_model(config: Config, shape: Shape) -> Problem:
    task, family = config.task.kind, shape.family
    if shape.is_encoder_decoder:
        what = f"{family} is an encoder-decoder, which makes texts from texts, and {task} does not"
        return Problem("task", what, "task=seq2seq data=examples, or task=span_denoising on text")
    if config.task.head == "seq2seq":
        what = f"{family} is no encoder-decoder (t5, bart), and {task} needs one"
        return Problem("model", what, "model=t5_small, or model=hf_folder model.path=FOLDER of one")
    if shape.is_encoder:
        wants = "next token to predict" if config.task.head == "next_token" else "answer to rate"
        what = f"{family} is an encoder, which has no {wants}, as {task} asks of it"
        return Problem("task", what, "task=classify data=examples, or the model of a decoder")
    what = f"{family} is a decoder, and {task} stands on an encoder (bert, roberta, distilbert ...)"
    return Problem("model", what, "model=hf_folder model.path=FOLDER, of an encoder")


def _smaller(model: FolderModel, shape: Shape) -> Problem:
    what = (
        f"{model.vocab_size:,} is less than the {shape.vocab_size:,} entries of the folder's "
        "embedding; entries can be added, not taken away"
    )
    return Problem("model.vocab_size", what, "model.vocab_size=0")


def _misfits(config: Config, shape: Shape, tokens: int | None) -> list[Problem]:
    found = []
    if tokens is not None and tokens > shape.vocab_size:
        what = (
            f"the tokenizer has {tokens:,} tokens, but the model's embedding has "
            f"{shape.vocab_size:,} entries"
        )
        if isinstance(config.model, FolderModel):
            found.append(_tokens_without_rows(config, shape, tokens, what))
        else:
            found.append(Problem("model.vocab_size", what, "model.vocab_size=0"))
    row, limit = config.data.sequence_length, shape.max_row_tokens
    if row > limit:
        what = f"rows of {row:,} tokens, but the model has {limit:,} positions"
        found.append(Problem("data.sequence_length", what, f"data.sequence_length={limit}"))
    if shape.family == "bart" and config.data.packing:
        what = "bart's positions are places of a row: packed examples would get those of others"
        found.append(Problem("data.packing", what, "data.packing=false"))
    return found


def _tokens_without_rows(config: Config, shape: Shape, tokens: int, what: str) -> Problem:
    """Rows can be added for new tokens; else it is another model's tokenizer."""
    if isinstance(config.task, RelationsTask) and config.task.new_tokens:
        rows = -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        fix = f"model.vocab_size={rows}, or task.new_tokens=false"
        return Problem("model.vocab_size", f"{what}; task.markers are new tokens", fix)
    return Problem("data.tokenizer", what, _fitting_tokenizer(config, shape))


def _fitting_tokenizer(config: Config, shape: Shape) -> str:
    """A smaller one where it is to be trained and the weights are new; else the folder's own."""
    assert isinstance(config.model, FolderModel)
    is_trained = isinstance(config.data.tokenizer, TrainedTokenizer)
    if is_trained and config.model.weights == "fresh" and shape.vocab_size >= MIN_TRAINED_VOCAB:
        return f"data.tokenizer.vocab_size={shape.vocab_size}"
    return f"data/tokenizer=pretrained data.tokenizer.path={config.model.path}"
