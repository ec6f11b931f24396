"""A conversation -> ids, and labels where the model is to speak."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.batch import IGNORED
from trainer.config.sections.encodings import ChatSettings
from trainer.data.encodings.base import TEXT, inputs_column
from trainer.data.encodings.conversation import Conversation, Conversations
from trainer.data.encodings.example import Array, Example, integers, noted
from trainer.data.encodings.weights import weights, weights_column
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import ChatTemplate
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record


class ChatEncoding:
    """Labels are what a position is to say: one place before the token among the inputs."""

    terms = "labels"
    wanted = Wanted(required=("messages",), optional=("tools",))

    def __init__(
        self,
        settings: ChatSettings,
        tokenizer: TaskTokenizer,
        *,
        template: ChatTemplate,
        row_tokens: int,
    ) -> None:
        last = settings.turns == "last"
        self._conversations = Conversations(template, tokenizer, roles=settings.roles, last=last)
        self._weighted = settings.weighted
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens
        self._ends = ends_of_turns(tokenizer)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            inputs_column(self._tokenizer.vocab_size, padding_id=self._tokenizer.padding_id),
            Column("labels", "int32", "T", fill=IGNORED),
            *([weights_column()] if self._weighted else []),
            TEXT,
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        """One that is too long ends with the last answer that is whole."""
        messages = record.fields["messages"]
        try:
            found = self._conversations.encoded(messages, record.fields.get("tools") or ())
        except DataError as e:
            raise DataError(f"{record.place}: {e}") from e
        if not self._weighted:
            _refuse_weights(found, record)
        length, cut = kept(found, most=self._row_tokens + 1)
        learnt = [(a, min(b, length)) for a, b in found.learnt if a < length]
        notes = noted(
            answer_cut=cut,
            answers_left_out=len(found.learnt) - len(learnt),
            end_missing=sum(found.ids[b - 1] not in self._ends for _, b in learnt) - cut,
            misaligned=found.loose,
        )
        arrays = {"inputs": integers(found.ids[: length - 1]), "labels": labels_of(found, length)}
        if self._weighted:
            arrays["weights"] = weights_of(found, length)
        text = {"messages": list(messages)}
        was_cut = length < len(found.ids)
        return [Example(arrays, record.file, record.row, text, was_cut=was_cut, notes=notes)]


def kept(found: Conversation, *, most: int) -> tuple[int, bool]:
    """(how many tokens stay, whether an answer is cut within)."""
    if len(found.ids) <= most:
        return len(found.ids), False
    whole = [end for _, end in found.learnt if end <= most]
    if whole:
        return whole[-1], False
    return most, any(begin < most for begin, _ in found.learnt)


def labels_of(found: Conversation, length: int) -> Array:
    labels = integers([IGNORED] * max(length - 1, 0))
    for begin, end in found.learnt:
        first = max(begin, 1)  # nothing says the first token
        ids = found.ids[first : min(end, length)]
        labels[first - 1 : first - 1 + len(ids)] = ids
    return labels


def weights_of(found: Conversation, length: int) -> Array:
    """Where `labels_of` has its labels."""
    made = weights([0.0] * max(length - 1, 0))
    for (begin, end), weight in zip(found.learnt, found.weights, strict=True):
        made[max(begin, 1) - 1 : min(end, length) - 1] = weight
    return made


def _refuse_weights(found: Conversation, record: Record) -> None:
    """Raises: DataError for a message that counts neither whole nor not at all."""
    odd = next((w for w in found.weights if w != 1), None)
    if odd is not None:
        raise DataError(
            f"{record.place}: a message has the weight {odd:g}, and weights other than 0 and 1 are "
            "taken with task.weighted=true"
        )


def ends_of_turns(tokenizer: TaskTokenizer) -> Collection[int]:
    """Ids that may end an answer: the end of text, and whatever else is an added token."""
    end = tokenizer.specials.get("eos_token")
    return {*tokenizer.special_texts.values(), *([end] if end is not None else [])}
