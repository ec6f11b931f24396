"""How records become examples: the part of a task's section that its encoding reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section


class WeightedSettings(Section):
    """Tokens may count for more or less than one."""

    # true: weights of the data (of words, messages, examples) multiply the losses of their tokens,
    # and a mean is over the sum of the weights; in training only
    weighted: bool = False


class TagSettings(WeightedSettings):
    """A tag for each token of a sentence."""

    # what the data holds. bio: B- begins, I- goes on | iob1: B- only between neighbours |
    # bioes: S- alone, E- ends (BILOU's U- and L- too) | plain: tags without spans, parts of speech
    tags: Literal["bio", "iob1", "bioes", "plain"]
    scheme: Literal["same", "bio", "bioes"]  # what the model learns

    @property
    def learnt(self) -> Literal["plain", "bio", "bioes"]:
        if self.tags == "plain":
            return "plain"
        if self.scheme != "same":
            return self.scheme
        return "bioes" if self.tags == "bioes" else "bio"


class RelationSettings(Section):
    """Which relation holds between two marked places of a text, direction included."""

    # put before and behind the first entity, then the second
    markers: Annotated[tuple[str, ...], Field(min_length=4, max_length=4)]


class QaSettings(Section):
    """Where in a context the answer to a question stands, or that it does not."""

    stride: Annotated[int, Field(ge=0)]  # tokens that two windows of a long context share
    # some questions have none; scores are those of SQuAD 2.0, else of 1.1
    no_answer: bool = True


class Seq2SeqSettings(WeightedSettings):
    """A text from a text. An encoder-decoder reads the source; a decoder reads it as a prompt."""

    prompt: str  # holds {source}; what the model reads
    target_tokens: Annotated[int, Field(ge=2)]  # most tokens of a target, its end included


class ChatSettings(WeightedSettings):
    """Answers in conversations, by the model's own chat template."""

    # tokenizer: what its folder has | chatml, plain: ours | else a path of a .jinja file
    template: str
    # whose messages are learnt
    roles: Annotated[
        tuple[Literal["assistant", "user", "system", "tool"], ...], Field(min_length=1)
    ]
    turns: Literal["all", "last"]  # of those messages
    date: str | None  # "2026-01-31": today, for templates that ask; a store must not depend on it


class PreferenceSettings(Section):
    """Two answers to a prompt, one preferred. Prompts that are chats go through the template."""

    template: str  # as for chats; only they need one
    date: str | None
