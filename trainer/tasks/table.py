"""The task section -> the task, and the head that its model needs: which class is behind which."""

from __future__ import annotations

from pathlib import Path

from trainer.config.sections.tasks import (
    ChatTask,
    ClassifyTask,
    CustomTask,
    ExtractQaTask,
    MaskedLmTask,
    MaskedPairsTask,
    MaskingTask,
    PreferenceTask,
    RelationsTask,
    RewardTask,
    Seq2SeqTask,
    SpanDenoisingTask,
    TagTask,
)
from trainer.data.changed_reader import Change
from trainer.data.sentinels import sentinels_and_end
from trainer.data.words import token_kinds
from trainer.errors import ConfigError, Problem
from trainer.models.heads import HeadSpec, ProblemType
from trainer.plan import RunPlan
from trainer.tasks.answers import Answers
from trainer.tasks.base import Task
from trainer.tasks.causal_lm import CausalLm
from trainer.tasks.classify import Classify
from trainer.tasks.custom import load_task
from trainer.tasks.denoised_rows import DenoisedRows
from trainer.tasks.extract_qa import ExtractQa
from trainer.tasks.masked_lm import MaskedLm
from trainer.tasks.masked_pairs import MaskedPairs
from trainer.tasks.masked_rows import MaskedPairRows, MaskedRows
from trainer.tasks.preference import Dpo, Orpo, Reward
from trainer.tasks.regularised import regularised
from trainer.tasks.relations import Relations
from trainer.tasks.tag import Tag
from trainer.tasks.targets import Targets

_PROBLEMS: dict[str, ProblemType] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def task_of(plan: RunPlan) -> Task:
    """Raises: ConfigError for a task of the user's own that cannot be loaded."""
    section = plan.config.task
    if isinstance(section, CustomTask):
        return load_task(section, trust=plan.config.run.trust)
    if isinstance(section, ClassifyTask):
        smoothing = section.label_smoothing
        return Classify(section.answers, labels_of(plan), label_smoothing=smoothing)
    if isinstance(section, TagTask):
        return Tag(labels_of(plan), section.learnt, label_smoothing=section.label_smoothing)
    if isinstance(section, RelationsTask):
        return Relations(
            labels_of(plan),
            none=section.none,
            symmetric=section.symmetric,
            label_smoothing=section.label_smoothing,
        )
    if isinstance(section, ExtractQaTask):
        return ExtractQa(
            answer_tokens=section.answer_tokens,
            no_answer=section.no_answer,
            threshold=section.no_answer_threshold,
            label_smoothing=section.label_smoothing,
        )
    if isinstance(section, ChatTask | Seq2SeqTask | SpanDenoisingTask):
        return _of_texts(section, plan)
    if isinstance(section, PreferenceTask | RewardTask):
        return _of_pairs(section)
    if isinstance(section, MaskedLmTask):
        return MaskedLm(label_smoothing=section.label_smoothing, z_loss=section.z_loss)
    if isinstance(section, MaskedPairsTask):
        return MaskedPairs()
    return CausalLm(label_smoothing=section.label_smoothing, z_loss=section.z_loss)


def _of_texts(section: ChatTask | Seq2SeqTask | SpanDenoisingTask, plan: RunPlan) -> Task:
    smoothing, z_loss = section.label_smoothing, section.z_loss
    if plan.decoder_start_id is not None:
        return Targets(label_smoothing=smoothing, z_loss=z_loss)
    whole = reads_prompts_whole(section)
    return Answers(label_smoothing=smoothing, z_loss=z_loss, prefix_lm=whole)


def reads_prompts_whole(section: object) -> bool:
    """Does a decoder of this task read its prompts both ways, wherever it is asked?"""
    return isinstance(section, Seq2SeqTask) and section.prefix_lm


def _of_pairs(section: PreferenceTask | RewardTask) -> Task:
    if isinstance(section, RewardTask):
        return Reward()
    if section.loss == "orpo":
        return Orpo(section.odds_weight)
    return Dpo(section.beta, section.label_smoothing)


def has_reference(section: object) -> bool:
    """Is the task's loss one against the model as it starts?"""
    return isinstance(section, PreferenceTask) and section.loss == "dpo"


def trained_task(plan: RunPlan) -> Task:
    """The task as its loss is trained on; scores are those of `task_of`.

    Raises: ConfigError for what cannot be done to an encoder-decoder's embeddings.
    """
    section = plan.config.regularize
    moves = section.neftune or section.adversarial.kind != "none"
    if moves and plan.decoder_start_id is not None:
        where = "regularize.neftune" if section.neftune else "regularize.adversarial.kind"
        what = "an encoder-decoder embeds two texts with one table: not said which to move"
        off = f"{where}=0" if section.neftune else f"{where}=none"
        raise ConfigError([Problem(where, what, off)])
    seed, rows = plan.config.run.seed, plan.config.batch.global_batch_size
    return regularised(task_of(plan), section, seed=seed, rows=rows)


def head_of(plan: RunPlan) -> HeadSpec | None:
    """None: the next token's, of a language model. Raises: ConfigError for labels that misfit."""
    section = plan.config.task
    if plan.decoder_start_id is not None:
        return HeadSpec("seq2seq")  # an encoder-decoder has one head, whatever its task
    if isinstance(section, ClassifyTask):
        # a regression's one output has a name in Hugging Face's config as well
        labels = labels_of(plan) or ("value",)
        return HeadSpec("sequence", labels, _PROBLEMS[section.answers])
    if isinstance(section, RelationsTask):
        return HeadSpec("sequence", labels_of(plan), _PROBLEMS["single"])
    if isinstance(section, TagTask):
        return HeadSpec("tokens", labels_of(plan))
    if isinstance(section, ExtractQaTask):
        return HeadSpec("spans")
    if isinstance(section, RewardTask):
        return HeadSpec("reward")
    if isinstance(section, MaskedLmTask):
        return HeadSpec("mlm")
    if isinstance(section, MaskedPairsTask):
        return HeadSpec("nsp")
    return None


def change_of(plan: RunPlan) -> Change | None:
    """What the task does to rows of text before they are trained on. Not collective.

    Raises: DataError for a tokenizer that the task cannot use.
    """
    config = plan.config
    if isinstance(config.task, SpanDenoisingTask):
        assert plan.decoder_start_id is not None  # the plan was made for an encoder-decoder
        sentinels, end = sentinels_and_end(Path(plan.stores[0].path))
        return DenoisedRows(
            config.task,
            sentinels=sentinels,
            end_id=end,
            start_id=plan.decoder_start_id,
            seed=config.run.seed,
            packing=config.data.packing,
            longest=config.data.sequence_length,
        )
    if not isinstance(config.task, MaskingTask):
        return None
    kinds = token_kinds(Path(plan.stores[0].path))
    if isinstance(config.task, MaskedPairsTask):
        return MaskedPairRows(config.task, kinds, seed=config.run.seed)
    return MaskedRows(config.task, kinds, seed=config.run.seed, packing=config.data.packing)


def labels_of(plan: RunPlan) -> tuple[str, ...]:
    """In the order of the model's outputs; they are those of the prepared data."""
    return plan.stores[0].labels if plan.stores else ()
