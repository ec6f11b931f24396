"""Documents of token stores -> rows of two stretches each: what next-sentence prediction reads.

A document is cut into stretches of nearly equal length, as long as two of them fill a row; BERT's
"sentences" are such stretches. A row is [start] one [end] another [end]; the second stretch is the
next one in every other sample, and else one of another document of the same source. Which row comes
when is the stream's matter, as for all text; which second stretch it gets is a function of (seed,
global sample index): another one in the next epoch, the same after a resume. Held-out rows are
always the same.

Shapes: R rows, T positions, E pairs (one a row), D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainer.batch import ExampleBatch
from trainer.data.order import Indices
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.sentence_pairs import Pair, SentencePairs, pair_row
from trainer.data.store import TokenSplit, TokenStore
from trainer.data.words import pair_marks
from trainer.errors import DataError
from trainer.records.token_store import Split

LEAST = 8  # tokens of a stretch: a document of fewer than two such has one alone
_SPECIAL = 3


class PairReader:
    """What stands behind `Stream` (see `Reader` there). Stores are token stores."""

    def __init__(
        self, sources: Sequence[StreamSource[TokenStore]], shape: RowShape, *, seed: int
    ) -> None:
        """Raises: DataError for a tokenizer without marks, or a source without pairs."""
        self._shape = shape
        self._marks = pair_marks(Path(sources[0].store.path))
        self._seeds: dict[Split, int] = {"train": seed, "held_out": 0}
        longest = (shape.sequence_length - _SPECIAL) // 2
        self._stretches: dict[Split, list[_Stretches]] = {
            "train": [_Stretches(s.store.train, longest) for s in sources],
            "held_out": [_Stretches(s.store.held_out, longest) for s in sources],
        }
        for source, found in zip(sources, self._stretches["train"], strict=True):
            try:
                found.pairs.check()
            except DataError as e:
                raise DataError(f"data source {source.name}: {e}") from None

    def num_rows(self, split: Split) -> list[int]:
        return [found.num_rows for found in self._stretches[split]]

    def first_document(self, source: int, row: int) -> int:
        return self._stretches["train"][source].pairs.at(row, sample=0, seed=0).first[0]

    def batches(
        self,
        split: Split,
        source_K: Indices,
        row_K: Indices,
        *,
        samples: Indices,
        sizes: Sequence[int],
    ) -> list[ExampleBatch]:
        made, begin = [], 0
        for size in sizes:
            at = slice(begin, begin + size)
            made.append(self._batch(split, source_K[at], row_K[at], samples=samples[at]))
            begin += size
        return made

    def _batch(
        self, split: Split, source_R: Indices, row_R: Indices, *, samples: Indices
    ) -> ExampleBatch:
        shape, marks = (self._shape.micro_batch_size, self._shape.sequence_length), self._marks
        inputs = np.full(shape, marks.padding, dtype=np.int64)
        segments, documents, positions = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        count = max(1, len(row_R))
        first, classes = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for r, (source, row, sample) in enumerate(
            zip(source_R.tolist(), row_R.tolist(), samples.tolist(), strict=True)
        ):
            stretches = self._stretches[split][source]
            pair = stretches.pairs.at(row, sample=sample, seed=self._seeds[split])
            ids, its_segments = self._row(stretches, pair)
            length = len(ids)
            inputs[r, :length], segments[r, :length] = ids, its_segments
            documents[r, :length], positions[r, :length] = 1, np.arange(length)
            first[r], classes[r] = r * shape[1], pair.label
        arrays = {
            "inputs_RT": inputs,
            "segments_RT": segments,
            "documents_RT": documents,
            "positions_RT": positions,
            "first_E": first,
            "classes_E": classes,
            "weights_E": (first >= 0).astype(np.float32),
        }
        fields = {name: torch.from_numpy(values) for name, values in arrays.items()}
        tokens = int((documents > 0).sum())
        return ExampleBatch(fields, tuple(samples.tolist()), len(row_R), tokens)

    def _row(
        self, stretches: _Stretches, pair: Pair
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        one, other = (stretches.tokens(*place) for place in (pair.first, pair.second))
        length, marks = self._shape.sequence_length, self._marks
        return pair_row(one, other, start=marks.start, end=marks.end, max_T=length)


class _Stretches:
    """Those of one split of one store."""

    def __init__(self, split: TokenSplit, longest: int) -> None:
        self._split = split
        text_D = np.maximum(_lengths(split) - 1, 0)  # the last token ends the document
        fewest_D = np.where(text_D >= 2 * LEAST, 2, np.minimum(text_D, 1))
        self._count_D = np.maximum(-(-text_D // longest), fewest_D)
        self.pairs = SentencePairs(self._count_D)

    @property
    def num_rows(self) -> int:
        """None without a second document, which random pairs need."""
        return self.pairs.places if np.count_nonzero(self._count_D) > 1 else 0

    def tokens(self, document: int, number: int) -> list[int]:
        text = self._split.document_tokens(document)[:-1]
        count = int(self._count_D[document])
        begin, end = (place * len(text) // count for place in (number, number + 1))
        found: list[int] = text[begin:end].astype(np.int64).tolist()
        return found


def _lengths(split: TokenSplit) -> npt.NDArray[np.int64]:
    """Tokens of each document, its end included."""
    found = [np.zeros(0, dtype=np.int64)]
    for number in range(split.num_shards):
        starts = split.shard(number).document_starts_D
        found.append(np.diff(starts, append=split.shard_record(number).num_tokens))
    return np.concatenate(found)
