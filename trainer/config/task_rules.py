"""Rules between a task and the data it is trained on: each yields Problems."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.names import nearest
from trainer.config.schema import Config
from trainer.config.sections.adapters import PromptAdapter
from trainer.config.sections.data import PretrainedTokenizer
from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.model import EncoderShape
from trainer.config.sections.tasks import (
    ClassifyTask,
    MaskedPairsTask,
    MaskingTask,
    PreferenceTask,
    RelationsTask,
    Seq2SeqTask,
    SpanDenoisingTask,
    Task,
)
from trainer.errors import Problem

SHORTEST_PAIR = 19  # tokens: three special ones, and twice the least stretch


def task_problems(config: Config) -> Iterator[Problem]:
    task, data = config.task, config.data
    if isinstance(task, MaskingTask):
        yield from _masking_problems(task, config)
    if isinstance(task, SpanDenoisingTask):
        yield from _sentinel_problems(config)
    if not isinstance(data, ExamplesSection):
        yield from _epoch_problems(config)
        if task.data == "examples":
            what = f"{task.kind} is trained on labelled examples, and the data is plain text"
            yield Problem("data", what, "data=examples, with data.sources.examples.paths=[...]")
        return
    if task.data == "text":
        what = f"{task.kind} is trained on plain text, and the data is labelled examples"
        yield Problem("task", what, "task=classify, or other data such as data=jsonl")
        return
    yield from _held_out_problems(data)
    yield from _label_problems(task, data)
    if isinstance(task, Seq2SeqTask) and task.prompt.count("{source}") != 1:
        what = "it has to hold {source} once, where the text that is read goes"
        yield Problem("task.prompt", what, "task.prompt='{source}'")
    if isinstance(task, Seq2SeqTask) and task.prefix_lm:
        yield from _prefix_problems(config)
    if isinstance(task, ClassifyTask) and task.label_smoothing and task.answers != "single":
        what = f"it spreads the probability of one class, and task.answers is {task.answers}"
        yield Problem("task.label_smoothing", what, "task.label_smoothing=0")
    if isinstance(task, PreferenceTask) and task.loss == "orpo" and task.label_smoothing:
        what = "pairs the wrong way round are reckoned with by dpo alone"
        yield Problem("task.label_smoothing", what, "task.label_smoothing=0, or task.loss=dpo")


def _prefix_problems(config: Config) -> Iterator[Problem]:
    """Prompts read both ways need a mask of their own."""
    if config.model.attention == "flash_attention_2":
        what = "flash_attention_2 takes no mask, which prompts that are read both ways need"
        yield Problem("model.attention", what, "model.attention=sdpa, or task.prefix_lm=false")
    if isinstance(config.model.adapter, PromptAdapter):
        what = "virtual tokens stand before prompts, and task.prefix_lm reads those both ways alone"
        yield Problem("model.adapter", what, "model/adapter=lora, or task.prefix_lm=false")


def _epoch_problems(config: Config) -> Iterator[Problem]:
    """Of text: rows whose number is known before they are read."""
    if config.steps.epochs is None:
        return
    if isinstance(config.task, MaskedPairsTask):
        what = "masked_lm_nsp draws its pairs of stretches as it goes, and has no epochs"
        yield Problem("steps.epochs", what, "steps.epochs=null, with steps.total")
    elif not config.data.packing:
        what = "rows of text that are not packed are not counted before they are read"
        yield Problem("steps.epochs", what, "data.packing=true, or steps.epochs=null")


def _masking_problems(task: MaskingTask, config: Config) -> Iterator[Problem]:
    if not isinstance(config.data.tokenizer, PretrainedTokenizer):
        what = f"a tokenizer that is trained here has no mask token, which {config.task.kind} needs"
        fix = "data/tokenizer=pretrained data.tokenizer.path=FOLDER, of an encoder"
        yield Problem("data.tokenizer", what, fix)
    if task.to_mask + task.to_random > 1:
        what = f"with task.to_mask={task.to_mask:g} it is more than all of the hidden tokens"
        yield Problem("task.to_random", what, f"task.to_random={max(0.0, 1 - task.to_mask):g}")
    if isinstance(task, MaskedPairsTask) and isinstance(config.model, EncoderShape):
        yield from _without_next_sentences(config.model)
    if isinstance(task, MaskedPairsTask) and config.data.sequence_length < SHORTEST_PAIR:
        what = f"a pair of stretches needs rows of {SHORTEST_PAIR} tokens at least"
        yield Problem("data.sequence_length", what, f"data.sequence_length={SHORTEST_PAIR}")


def _without_next_sentences(model: EncoderShape) -> Iterator[Problem]:
    if model.family != "bert":
        what = f"{model.family} has no head for next sentences; bert has one"
        yield Problem("model.family", what, "task=masked_lm, or model.family=bert")


def _sentinel_problems(config: Config) -> Iterator[Problem]:
    if not isinstance(config.data.tokenizer, PretrainedTokenizer):
        what = "a tokenizer that is trained here has no sentinels, which span_denoising needs"
        fix = "data/tokenizer=pretrained data.tokenizer.path=FOLDER, with <extra_id_0> and on"
        yield Problem("data.tokenizer", what, fix)


def _held_out_problems(data: ExamplesSection) -> Iterator[Problem]:
    for name in data.held_out:
        if name not in data.sources:
            near = nearest(name, list(data.sources)) or next(iter(data.sources))
            what = f"there is no source {name} whose evaluation it could be"
            yield Problem(f"data.held_out.{name}", what, f"name it {near}, as in data.sources")


def _label_problems(task: Task, data: ExamplesSection) -> Iterator[Problem]:
    labels = data.labels
    if labels is None:
        return
    if isinstance(task, ClassifyTask) and task.answers == "regression":
        what = "a regression predicts numbers and has no labels"
        yield Problem("data.labels", what, "data.labels=null")
    elif task.head not in ("sequence", "tokens"):
        yield Problem("data.labels", f"{task.kind} has no labels", "data.labels=null")
    elif len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        yield Problem("data.labels", f"{twice!r} stands in it twice", "name each label once")
    elif len(labels) < (1 if isinstance(task, ClassifyTask) and task.answers == "multi" else 2):
        what = f"{len(labels)} labels are no choice"
        yield Problem("data.labels", what, "data.labels=null, to take those of the data")
    elif isinstance(task, RelationsTask) and task.none not in (None, *labels):
        near = nearest(str(task.none), list(labels)) or labels[0]
        what = f"{task.none!r} is none of data.labels"
        yield Problem("task.none", what, f"task.none={near}")
