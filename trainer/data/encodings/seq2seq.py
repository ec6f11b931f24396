"""A source and its target -> ids for an encoder-decoder, or for a decoder that is prompted.

Labels are what a position is to say, so they stand one place before their token among the inputs:
an encoder-decoder's `decoder_inputs` begin with its start token, a decoder's last prompt token
says the target's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.batch import IGNORED
from trainer.config.sections.encodings import Seq2SeqSettings
from trainer.data.encodings.base import TEXT, inputs_column
from trainer.data.encodings.example import Array, Example, integers, noted
from trainer.data.encodings.weights import weight_of, weights, weights_column
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record

_WANTED = Wanted(required=("source", "target"), optional=("references",))
_WEIGHTED = Wanted(required=("source", "target"), optional=("references", "weight"))


class EncoderDecoderEncoding:
    """`start_id`: what a decoder begins with, of the model's config (T5's padding, BART's end)."""

    terms = "labels"

    def __init__(
        self,
        settings: Seq2SeqSettings,
        tokenizer: TaskTokenizer,
        *,
        row_tokens: int,
        start_id: int,
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens
        self._start_id = start_id
        self._end = tokenizer.special("eos_token")

    @property
    def wanted(self) -> Wanted:
        return _WEIGHTED if self._settings.weighted else _WANTED

    @property
    def columns(self) -> tuple[Column, ...]:
        size, padding = self._tokenizer.vocab_size, self._tokenizer.padding_id
        return (
            inputs_column(size, padding_id=padding),
            replace(inputs_column(size, padding_id=padding, name="decoder_inputs"), axis="S"),
            Column("labels", "int32", "S", fill=IGNORED),
            *([weights_column("S")] if self._settings.weighted else []),
            TEXT,
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        _check_texts(record)
        fields, most = record.fields, min(self._settings.target_tokens, self._row_tokens)
        prompt = self._settings.prompt.replace("{source}", fields["source"])
        source = self._tokenizer.encode(prompt, length=self._row_tokens)
        target = self._tokenizer.encode(fields["target"]).ids
        target = target if target[-1:] == [self._end] else [*target, self._end]
        cut = max(0, len(target) - most)
        target = target[:most]
        arrays = {
            "inputs": integers(source.ids),
            "decoder_inputs": integers([self._start_id, *target[:-1]]),
            "labels": integers(target),
        }
        _weigh(arrays, record, self._settings)
        text = _references(record)
        notes = noted(answer_cut=cut, source_cut=source.was_cut)
        was_cut = source.was_cut or cut > 0
        return [Example(arrays, record.file, record.row, text, was_cut=was_cut, notes=notes)]


class PromptedEncoding:
    """A decoder reads the prompt and is taught the target and the end alone."""

    terms = "labels"

    def __init__(
        self, settings: Seq2SeqSettings, tokenizer: TaskTokenizer, *, row_tokens: int
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens
        self._end = tokenizer.special("eos_token")
        self._begin = beginning(tokenizer)

    @property
    def wanted(self) -> Wanted:
        return _WEIGHTED if self._settings.weighted else _WANTED

    @property
    def columns(self) -> tuple[Column, ...]:
        return (
            inputs_column(self._tokenizer.vocab_size, padding_id=self._tokenizer.padding_id),
            Column("labels", "int32", "T", fill=IGNORED),
            *([weights_column()] if self._settings.weighted else []),
            TEXT,
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        """What is too long loses of its source, never of its target."""
        _check_texts(record)
        fields = record.fields
        before, mark, after = self._settings.prompt.partition("{source}")
        assert mark  # the rules ask for it
        source = self._ids(before + fields["source"])
        behind = self._ids(after) if after else []
        target = [*self._ids(fields["target"]), self._end]
        answer_cut = max(0, len(target) - self._settings.target_tokens)
        target = target[: len(target) - answer_cut]
        room = self._row_tokens + 1 - len(self._begin) - len(behind) - len(target)
        if room < 0:
            raise DataError(
                f"{record.place}: the target has {len(target)} tokens, which do not fit into a row "
                f"of {self._row_tokens}; raise data.sequence_length or lower task.target_tokens"
            )
        source_cut = max(0, len(source) - room)
        prompt = [*self._begin, *source[: len(source) - source_cut], *behind]
        if not prompt:
            raise DataError(f"{record.place}: nothing stands before the target")
        arrays = taught(prompt, target)
        _weigh(arrays, record, self._settings)
        notes = noted(answer_cut=answer_cut, source_cut=source_cut)
        was_cut = bool(answer_cut or source_cut)
        text = _references(record)
        return [Example(arrays, record.file, record.row, text, was_cut=was_cut, notes=notes)]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=False).ids


def taught(prompt: Sequence[int], target: Sequence[int]) -> dict[str, Array]:
    """inputs and labels of a decoder: what a position is to say is IGNORED within the prompt."""
    ids = [*prompt, *target]
    labels = [IGNORED] * (len(prompt) - 1) + list(target)
    return {"inputs": integers(ids[:-1]), "labels": integers(labels)}


def beginning(tokenizer: TaskTokenizer) -> list[int]:
    """What the tokenizer puts before every text: [its begin of text], or nothing."""
    begin = tokenizer.specials.get("bos_token")
    ids = tokenizer.encode("a").ids
    return ids[:1] if begin is not None and ids[:1] == [begin] else []


def _weigh(arrays: dict[str, Array], record: Record, settings: Seq2SeqSettings) -> None:
    """Every token of the target counts as the example does; one of weight 0 is not learnt."""
    if not settings.weighted:
        return
    weight = weight_of(record.fields.get("weight"), record.place)
    if not weight:
        arrays["labels"] = np.full_like(arrays["labels"], IGNORED)
    arrays["weights"] = weights(np.where(arrays["labels"] != IGNORED, weight, 0.0))


def _check_texts(record: Record) -> None:
    """Raises: DataError if there is nothing to read, or nothing to say."""
    for name in ("source", "target"):
        if not str(record.fields[name]).strip():
            raise DataError(f"{record.place}: its {name} is empty; leave the row out")


def _references(record: Record) -> dict[str, object]:
    given = record.fields.get("references") or [record.fields["target"]]
    return {"references": list(given), "source": record.fields["source"]}
