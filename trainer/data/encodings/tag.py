"""Tokens with a tag each -> ids, and the tag's number on the first sub-word of each token."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.batch import IGNORED
from trainer.config.sections.encodings import TagSettings
from trainer.data.encodings.base import inputs_column
from trainer.data.encodings.example import Example, integers, noted
from trainer.data.encodings.labels import LabelSet, label_name
from trainer.data.encodings.tag_schemes import spans_of, tags_of
from trainer.data.encodings.weights import weight_of, weights, weights_column
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record


class TagEncoding:
    """`labels`: tags in the scheme that is learnt, in the order of the model's outputs."""

    terms = "labels"

    def __init__(
        self,
        settings: TagSettings,
        tokenizer: TaskTokenizer,
        *,
        labels: Sequence[str],
        row_tokens: int,
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._labels = LabelSet(labels)
        self._row_tokens = row_tokens

    @property
    def wanted(self) -> Wanted:
        return Wanted(("tokens", "tags"), ("weights",) if self._settings.weighted else ())

    @property
    def columns(self) -> tuple[Column, ...]:
        tokenizer = self._tokenizer
        return (
            inputs_column(tokenizer.vocab_size, padding_id=tokenizer.padding_id),
            Column("segments", "uint8", "T"),
            Column("labels", "int32", "T", fill=IGNORED),
            *([weights_column()] if self._settings.weighted else []),
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return self._tags(record)

    def encode(self, record: Record) -> Sequence[Example]:
        """Words beyond the row have no label; one that leaves no sub-word is noted."""
        tokens = record.fields["tokens"]
        numbers = [self._labels.number(tag, record) for tag in self._tags(record)]
        found = self._tokenizer.encode(list(tokens), length=self._row_tokens)
        counts = self._weights(record)
        labels, learnt, seen = [], [], set[int]()
        for word in found.words:
            taught = word is not None and word not in seen and counts[word] > 0
            labels.append(numbers[word] if taught and word is not None else IGNORED)
            learnt.append(counts[word] if taught and word is not None else 0.0)
            if word is not None:
                seen.add(word)
        reached = max(seen, default=-1) + 1 if found.was_cut else len(tokens)
        arrays = {
            "inputs": integers(found.ids),
            "segments": integers(found.segments),
            "labels": integers(labels),
        }
        if self._settings.weighted:
            arrays["weights"] = weights(learnt)
        lost, cut = reached - len(seen), len(tokens) - reached
        return [
            Example(
                arrays,
                record.file,
                record.row,
                was_cut=found.was_cut,
                notes=noted(words_lost=lost, words_cut=cut),
            )
        ]

    def _weights(self, record: Record) -> list[float]:
        """Of each token. Raises: DataError if they are not as many, or no weights."""
        tokens, given = record.fields["tokens"], record.fields.get("weights")
        if given is None:
            return [1.0] * len(tokens)
        if not isinstance(given, list) or len(given) != len(tokens):
            many = len(given) if isinstance(given, list) else type(given).__name__
            raise DataError(f"{record.place} has {len(tokens)} tokens and {many} weights")
        return [weight_of(w, f"{record.place}, token {n}") for n, w in enumerate(given, 1)]

    def _tags(self, record: Record) -> list[str]:
        tags = [label_name(tag) for tag in record.fields["tags"]]
        given, learnt = self._settings.tags, self._settings.learnt
        if learnt == "plain":
            return tags
        spans = spans_of(tags, given, where=record.place)
        return tags_of(spans, len(tags), learnt)
