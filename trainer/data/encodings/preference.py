"""A prompt and two answers -> the prompt with either, and labels on the answers alone.

`inputs` and `labels` hold the preferred one, `rejected` and `rejected_labels` the other; labels are
what a position is to say, and the last token is there, for models that judge at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.batch import IGNORED
from trainer.config.sections.encodings import PreferenceSettings
from trainer.data.encodings.base import EXAMPLES, inputs_column
from trainer.data.encodings.chat import ends_of_turns
from trainer.data.encodings.conversation import Conversations
from trainer.data.encodings.example import Array, Example, integers, noted
from trainer.data.encodings.seq2seq import beginning
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import ChatTemplate
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record


class PreferenceEncoding:
    """`template`: for prompts that are chats; None where the tokenizer has none."""

    terms = EXAMPLES
    wanted = Wanted(required=("chosen", "rejected"), optional=("prompt",))

    def __init__(
        self,
        settings: PreferenceSettings,
        tokenizer: TaskTokenizer,
        *,
        template: ChatTemplate | None,
        row_tokens: int,
    ) -> None:
        self._conversations = None
        if template is not None:
            roles = ("assistant",)
            self._conversations = Conversations(template, tokenizer, roles=roles, last=True)
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens
        self._end = tokenizer.special("eos_token")
        self._ends = ends_of_turns(tokenizer)
        self._begin = beginning(tokenizer)

    @property
    def columns(self) -> tuple[Column, ...]:
        size, padding = self._tokenizer.vocab_size, self._tokenizer.padding_id
        return (
            inputs_column(size, padding_id=padding),
            Column("labels", "int32", "T", fill=IGNORED),
            replace(inputs_column(size, padding_id=padding, name="rejected"), axis="S"),
            Column("rejected_labels", "int32", "S", fill=IGNORED),
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        made: dict[str, Array] = {}
        cut = missing = 0
        for name, inputs, labels in (
            ("chosen", "inputs", "labels"),
            ("rejected", "rejected", "rejected_labels"),
        ):
            ids, begin, end = self._answered(record, name)
            cut += len(ids) > self._row_tokens
            ids = ids[: self._row_tokens]
            if begin >= len(ids):
                raise DataError(
                    f"{record.place}: the prompt leaves no room for '{name}' in a row of "
                    f"{self._row_tokens} tokens; raise data.sequence_length"
                )
            said = [IGNORED] * len(ids)
            said[begin - 1 : min(end, len(ids)) - 1] = ids[begin:end]
            made[inputs], made[labels] = integers(ids), integers(said)
            missing += end <= len(ids) and ids[end - 1] not in self._ends
        notes = noted(answer_cut=cut, end_missing=missing)
        return [Example(made, record.file, record.row, was_cut=cut > 0, notes=notes)]

    def _answered(self, record: Record, name: str) -> tuple[list[int], int, int]:
        """(ids of the prompt and one answer, where the answer begins and ends)."""
        prompt, answer = record.fields["prompt"], record.fields[name]
        if isinstance(answer, list):
            return self._chat(record, [*prompt, *answer])
        asked = [*self._begin, *self._tokenizer.encode(prompt, special=False).ids]
        ids = [*asked, *self._tokenizer.encode(answer, special=False).ids, self._end]
        return ids, len(asked), len(ids)

    def _chat(self, record: Record, messages: list[Any]) -> tuple[list[int], int, int]:
        if self._conversations is None:
            raise DataError(
                f"{record.place} is a chat, and the tokenizer has no chat template; name one with "
                "task.template: chatml, plain, or the path of a jinja file"
            )
        try:
            found = self._conversations.encoded(messages)
        except DataError as e:
            raise DataError(f"{record.place}: {e}") from e
        if not found.learnt:
            raise DataError(f"{record.place}: the chat template leaves the answer out")
        return found.ids, *found.learnt[-1]
