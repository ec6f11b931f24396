"""What an encoding is: a task's own, pure function Record -> Examples, run once by `prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainer.data.encodings.example import Example
from trainer.data.formats.rows import Wanted
from trainer.records.example_store import Column
from trainer.records.record import Record

# Of every store: where an example came from (file of the manifest, row) and what its encoding noted
# (example.NOTES), for messages and audits.
PLACES = Column("places", "int64", "E", width=3)
# JSON that scores need, of encodings whose examples have `text`.
TEXT = Column("text", "uint8", "aside")
EXAMPLES = "examples"  # the terms of a loss that is a mean over examples


class Encoding(Protocol):
    """No state and no chance: the same record gives the same examples, whatever came before."""

    @property
    def wanted(self) -> Wanted:
        """The fields of a record that it takes."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of its examples' arrays, `inputs` first; PLACES comes by itself."""

    @property
    def terms(self) -> str:
        """EXAMPLES, or the column whose entries are terms unless IGNORED."""

    def labels_of(self, record: Record) -> Sequence[str]:
        """What the record adds to the set of labels, where the settings leave that to the data."""

    def encode(self, record: Record) -> Sequence[Example]:
        """Raises: DataError naming file and row, for what cannot be trained on."""


def inputs_column(vocab_size: int, *, padding_id: int, name: str = "inputs") -> Column:
    """Token ids in the smallest type that holds them."""
    return Column(name, "uint16" if vocab_size <= 2**16 else "uint32", "T", fill=padding_id)
