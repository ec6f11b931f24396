"""A prompt and two answers -> the prompt with one, then the prompt with the other, as one example.

Both stand in the same row, the preferred one first: rows are packed and cut to length as those of
any task, and a step's tokens are the tokens that go through the model. `answers` says of each
position whose it is. Labels, on the answers alone, are what a position is to say; the last token
of each is there, for models that judge at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.batch import CHOSEN, IGNORED, REJECTED
from trainer.config.sections.encodings import PreferenceSettings
from trainer.data.encodings.base import EXAMPLES, inputs_column
from trainer.data.encodings.chat import ends_of_turns
from trainer.data.encodings.conversation import Conversations
from trainer.data.encodings.example import Example, integers, noted
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
            Column("answers", "uint8", "T"),
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        """Of a pair that is too long the longer one is cut, or both to half a row."""
        found = [(name, *self._answered(record, name)) for name in ("chosen", "rejected")]
        one, other = (len(ids) for _, ids, _, _ in found)
        half, row = (self._row_tokens + 1) // 2, self._row_tokens
        rooms = (max(half, row - other), max(row - half, row - one))
        inputs: list[int] = []
        labels: list[int] = []
        cut = missing = 0
        for room, (name, ids, begin, end) in zip(rooms, found, strict=True):
            cut += len(ids) > room
            ids = ids[:room]
            if begin >= len(ids):
                raise DataError(
                    f"{record.place}: the prompt leaves no room for '{name}' in a row of "
                    f"{row} tokens, which holds it with either answer; raise data.sequence_length"
                )
            said = [IGNORED] * len(ids)
            said[begin - 1 : min(end, len(ids)) - 1] = ids[begin:end]
            inputs, labels = inputs + ids, labels + said
            missing += end <= len(ids) and ids[end - 1] not in self._ends
        first = min(one, rooms[0])
        arrays = {
            "inputs": integers(inputs),
            "labels": integers(labels),
            "answers": integers([CHOSEN] * first + [REJECTED] * (len(inputs) - first)),
        }
        notes = noted(answer_cut=cut, end_missing=missing)
        return [Example(arrays, record.file, record.row, was_cut=cut > 0, notes=notes)]

    def _answered(self, record: Record, name: str) -> tuple[list[int], int, int]:
        """(ids of the prompt and one answer, where the answer begins and ends)."""
        prompt, answer = record.fields["prompt"], record.fields[name]
        if isinstance(answer, list):
            return self._chat(record, [*prompt, *answer])
        asked = [*self._begin, *self._tokenizer.encode(prompt, special=False).ids]
        if not asked:
            raise DataError(f"{record.place}: nothing stands before the answers; give it a prompt")
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
