"""Rows of text -> pairs of what is left of a text and what was cut out, for encoder-decoders.

Each document of a row is cut by itself and has sentinels of its own; its pair shares a row with
those of the others and attends to nothing of theirs. What is cut out is a pure function of (seed,
global sample index, document): a row that comes again in the next epoch is another sample and is
cut anew. Held-out rows are cut the same way every time. The token that ends a document is never cut
out: both texts of a pair end with it, whatever the piece of the document ended with.

Shapes: R rows, T positions of the source, S of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import IGNORED, ExampleBatch, TokenBatch
from trainer.config.sections.tasks import SpanDenoisingTask
from trainer.errors import DataError
from trainer.objectives.span_denoising import SpanDenoising, denoised_row, lengths
from trainer.records.token_store import Split

Ids = NDArray[np.int64]
_LEAST = 2  # tokens of a document that something can be cut out of
_MULTIPLE = 8  # what kernels like rows to be long


class DenoisedRows:
    """A Change of trainer/data/changed_reader.py."""

    def __init__(
        self,
        section: SpanDenoisingTask,
        *,
        sentinels: Sequence[int],
        end_id: int,
        start_id: int,
        seed: int,
        packing: bool,
        longest: int,
    ) -> None:
        """`longest`: tokens of a row of text.

        Raises: DataError if a document that fills a row has more spans than there are sentinels.
        """
        self._settings = SpanDenoising(
            sentinels,
            end_id,
            density=section.rate,
            mean_length=section.mean_length,
            final_sentinel=section.final_sentinel,
        )
        spans = lengths(longest, self._settings)[0] + section.final_sentinel
        if spans > len(sentinels):
            raise DataError(
                f"a document that fills a row of {longest:,} tokens needs {spans} sentinels, but "
                f"the tokenizer has {len(sentinels)}; lower data.sequence_length or task.rate, or "
                "raise task.mean_length"
            )
        self._start_id = start_id
        self._seeds = {"train": seed, "held_out": 0}
        self._packing = packing

    def __call__(self, batch: TokenBatch, split: Split) -> ExampleBatch:
        step = 0 if split == "train" else -1
        rows: list[list[tuple[Ids, Ids]]] = [[] for _ in range(len(batch.inputs_RT))]
        for r, sample in enumerate(batch.sample_indices):
            for number, ids_T in enumerate(self._documents(batch, r)):
                pair = denoised_row(
                    ids_T,
                    settings=self._settings,
                    seed=self._seeds[split],
                    step=step,
                    row=sample,
                    document=number,
                )
                rows[r].append(pair)
        fields = self._laid_out(rows)
        terms = int((fields["labels_RS"] != IGNORED).sum())
        return ExampleBatch(fields, batch.sample_indices, terms, batch.tokens)

    def _documents(self, batch: TokenBatch, row: int) -> list[Ids]:
        """The pieces of documents in a row, without the tokens that end them."""
        ids_T, positions_T = batch.inputs_RT[row].numpy(), batch.positions_RT[row].numpy()
        if not self._packing:  # one piece; its last token alone has no label
            counts = batch.labels_RT[row].numpy() != IGNORED
            ids_T = ids_T[: 1 + int(counts.sum())]
            positions_T = positions_T[: len(ids_T)]
        pieces = np.split(ids_T, np.flatnonzero(positions_T == 0)[1:])
        ends = (p[:-1] if p[-1] == self._settings.end_id else p for p in pieces)
        return [piece for piece in ends if len(piece) >= _LEAST]

    def _laid_out(self, rows: Sequence[Sequence[tuple[Ids, Ids]]]) -> dict[str, torch.Tensor]:
        end = self._settings.end_id
        sources = [[source for source, _ in pairs] for pairs in rows]
        targets = [[target for _, target in pairs] for pairs in rows]
        shifted = [[np.concatenate([[self._start_id], t[:-1]]) for t in row] for row in targets]
        return {
            "inputs_RT": _rows(sources, fill=end),
            "documents_RT": _numbers(sources),
            "decoder_inputs_RS": _rows(shifted, fill=end),
            "decoder_documents_RS": _numbers(targets),
            "labels_RS": _rows(targets, fill=IGNORED),
        }


def _rows(pieces: Sequence[Sequence[Ids]], *, fill: int) -> torch.Tensor:
    """One behind the other, in rows as long as the longest needs."""
    longest = max((sum(map(len, row)) for row in pieces), default=0)
    width = -(-max(longest, 1) // _MULTIPLE) * _MULTIPLE
    made = np.full((len(pieces), width), fill, dtype=np.int64)
    for place, row in zip(made, pieces, strict=True):
        if row:
            joined = np.concatenate(row)
            place[: len(joined)] = joined
    return torch.from_numpy(made)


def _numbers(pieces: Sequence[Sequence[Ids]]) -> torch.Tensor:
    """Of each position's document within its row, from 1; 0 on padding."""
    return _rows(
        [[np.full(len(p), n, dtype=np.int64) for n, p in enumerate(row, 1)] for row in pieces],
        fill=0,
    )
