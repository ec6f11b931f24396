"""What is minimised: one section a task, each with the kind of data that it is trained on.

A task on examples is a class here with `data = "examples"`, an encoding in trainer/data/encodings/,
and the task itself in trainer/tasks/: docs/add-a-thing.md goes through it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainer.config.sections.base import Section, Target

DataKind = Literal["text", "examples"]


class _Task(Section):
    data: ClassVar[DataKind] = "text"  # what `data.kind` has to be
    head: ClassVar[str] = "next_token"  # as HeadSpec.kind of trainer/models says


class CausalLmTask(_Task):
    kind: Literal["causal_lm"]


class CustomTask(_Task):
    """A class of the user's own package (see docs/add-a-thing.md), admitted by run.trust."""

    kind: Literal["custom"]
    target: Target
    settings: dict[str, Any] = Field(default_factory=dict)


class ClassifyTask(_Task):
    """A text, or a pair of texts, gets a class, several classes, or a number."""

    data: ClassVar[DataKind] = "examples"
    head: ClassVar[str] = "sequence"

    kind: Literal["classify"]
    # single: exactly one label | multi: any number of labels | regression: a number
    answers: Literal["single", "multi", "regression"]


# masked_lm, tag, relations, extract_qa, seq2seq, chat and preference stand here, each with a class.
Task = Annotated[CausalLmTask | CustomTask | ClassifyTask, Field(discriminator="kind")]
