"""What is minimised: one section a task, each with the kind of data that it is trained on.

A task on examples is a class here with `data = "examples"`, an encoding in trainer/data/encodings/,
and the task itself in trainer/tasks/: docs/add-a-thing.md goes through it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainer.config.sections.base import Section, Target
from trainer.config.sections.encodings import (
    ChatSettings,
    PreferenceSettings,
    QaSettings,
    RelationSettings,
    Seq2SeqSettings,
    TagSettings,
)

DataKind = Literal["text", "examples"]


class _Task(Section):
    data: ClassVar[DataKind] = "text"  # what `data.kind` has to be
    head: ClassVar[str] = "next_token"  # as HeadSpec.kind of trainer/models says
    # whether encoder-decoders can do it, which have the one head "seq2seq"
    on_encoder_decoders: ClassVar[bool] = False
    shares_rows: ClassVar[bool] = False  # an example is several that must not see each other


class _Smoothed(_Task):
    # of each label's probability, spread evenly over all classes, tokens, or places of an answer;
    # in training only
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class _OfTokens(_Smoothed):
    """Tokens are predicted over the whole vocabulary."""

    # weight of log(Z)^2 a token, Z the softmax's sum, so that logits do not drift (PaLM: 1e-4);
    # in training only
    z_loss: Annotated[float, Field(ge=0, le=1)] = 0.0


class CausalLmTask(_OfTokens):
    kind: Literal["causal_lm"]


class CustomTask(_Task):
    """A class of the user's own package (see docs/add-a-thing.md), admitted by run.trust."""

    kind: Literal["custom"]
    target: Target
    settings: dict[str, Any] = Field(default_factory=dict)


class ClassifyTask(_Smoothed):
    """A text, or a pair of texts, gets a class, several classes, or a number."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "sequence"

    kind: Literal["classify"]
    # single: exactly one label | multi: any number of labels | regression: a number
    answers: Literal["single", "multi", "regression"]


class TagTask(_Smoothed, TagSettings):
    """Each word of a text gets a tag; loss and scores look at its first sub-word."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "tokens"

    kind: Literal["tag"]


class ExtractQaTask(_Smoothed, QaSettings):
    """The answer to a question is a stretch of its context."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "spans"

    kind: Literal["extract_qa"]
    answer_tokens: Annotated[int, Field(ge=1, le=10_000)]  # longest answer that scores look for
    # none is said where its score is more than this above that of the best answer
    no_answer_threshold: float


class ChatTask(_OfTokens, ChatSettings):
    """A decoder learns what the assistant says in conversations."""

    data: ClassVar[DataKind] = "examples"

    kind: Literal["chat"]


class Seq2SeqTask(_OfTokens, Seq2SeqSettings):
    """The target is made from a prompt that holds the source: an encoder-decoder reads it apart, a
    decoder goes on with it.
    """

    data: ClassVar[DataKind] = "examples"
    on_encoder_decoders: ClassVar[bool] = True

    kind: Literal["seq2seq"]
    # decoders: a prompt's tokens see one another both ways, as an encoder's (a prefix-LM)
    prefix_lm: bool = False


class PreferenceTask(_Task, PreferenceSettings):
    """Of two answers to a prompt a decoder learns to give the one that is preferred."""

    data: ClassVar[DataKind] = "examples"
    shares_rows: ClassVar[bool] = True

    kind: Literal["preference"]
    # dpo: against a reference, the model as it starts | orpo: without one
    loss: Literal["dpo", "orpo"]
    beta: Annotated[float, Field(gt=0)]  # dpo: how near it stays to the reference
    # dpo: the chance that a pair is the wrong way round
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    odds_weight: Annotated[float, Field(ge=0)]  # orpo: of the odds, beside the answer's own loss


class RewardTask(_Task, PreferenceSettings):
    """A decoder with one number on top learns which of two answers is preferred."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "reward"
    shares_rows: ClassVar[bool] = True

    kind: Literal["reward"]


class RelationsTask(_Smoothed, RelationSettings):
    """Two marked entities of a text get the relation between them; a label says its direction."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "sequence"

    kind: Literal["relations"]
    new_tokens: bool  # markers become tokens of their own
    none: str | None  # the label that says there is no relation
    symmetric: tuple[str, ...]  # relations without a direction


class MaskingTask(_Task):
    """Some tokens are hidden, and told from what is around them."""

    rate: Annotated[float, Field(gt=0, lt=1)]  # share of tokens that are hidden and predicted
    to_mask: Annotated[float, Field(ge=0, le=1)]  # share of those that become the mask token
    # share of those that become a random token; the rest stays as it is
    to_random: Annotated[float, Field(ge=0, le=1)]
    unit: Literal["token", "word", "span"]


class MaskedLmTask(MaskingTask, _OfTokens):
    """Text of which some tokens are hidden: how encoders are pretrained."""

    head: ClassVar[str] = "mlm"

    kind: Literal["masked_lm"]


class MaskedPairsTask(MaskingTask):
    """Two stretches of text with hidden tokens: does the second follow the first? BERT's own."""

    head: ClassVar[str] = "nsp"

    kind: Literal["masked_lm_nsp"]


class SpanDenoisingTask(_OfTokens):
    """Text of which spans are cut out, and said by the decoder: how T5 is pretrained."""

    head: ClassVar[str] = "seq2seq"
    on_encoder_decoders: ClassVar[bool] = True

    kind: Literal["span_denoising"]
    rate: Annotated[float, Field(gt=0, lt=1)]  # share of tokens that are cut out
    mean_length: Annotated[float, Field(ge=1)]  # of a span, in tokens
    final_sentinel: bool  # targets end with the next unused sentinel, before their end


Task = Annotated[
    CausalLmTask
    | CustomTask
    | ClassifyTask
    | TagTask
    | RelationsTask
    | ExtractQaTask
    | ChatTask
    | Seq2SeqTask
    | PreferenceTask
    | RewardTask
    | MaskedLmTask
    | MaskedPairsTask
    | SpanDenoisingTask,
    Field(discriminator="kind"),
]
