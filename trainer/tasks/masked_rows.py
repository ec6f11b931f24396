"""Rows of text -> rows of which some tokens are hidden, for masked language modelling.

What is hidden is a pure function of (seed, global sample index): a row that comes again in the
next epoch is another sample and is masked anew; a resume, another world or another batch size
change nothing. Held-out rows are masked the same way every time. Documents begin and end as in the
store, with no token before them; they never attend to each other.

Shapes: R rows, T positions.
"""

from __future__ import annotations

import torch

from trainer.batch import IGNORED, ExampleBatch, TokenBatch
from trainer.config.sections.tasks import MaskingTask
from trainer.data.words import TokenKinds
from trainer.objectives.masking import Masking, masked_rows
from trainer.records.token_store import Split


def masking_of(section: MaskingTask, kinds: TokenKinds) -> Masking:
    return Masking(
        kinds.mask_id,
        kinds.ordinary_V.nonzero()[0],
        rate=section.rate,
        to_mask=section.to_mask,
        to_random=section.to_random,
        unit=section.unit,
    )


class MaskedRows:
    """A Change of trainer/data/changed_reader.py."""

    def __init__(
        self, section: MaskingTask, kinds: TokenKinds, *, seed: int, packing: bool
    ) -> None:
        self._masking = masking_of(section, kinds)
        self._ordinary_V = torch.from_numpy(kinds.ordinary_V)
        self._begins_V = torch.from_numpy(kinds.begins_V)
        self._seeds = {"train": seed, "held_out": 0}
        self._packing = packing

    def __call__(self, batch: TokenBatch, split: Split) -> ExampleBatch:
        documents_RT = self._documents(batch)
        may_mask_RT = self._ordinary_V[batch.inputs_RT] & (documents_RT > 0)
        # The first token of a document begins a word, whatever came before it in the row.
        begins_RT = self._begins_V[batch.inputs_RT] | (batch.positions_RT == 0)
        inputs_RT, labels_RT = masked_rows(
            batch.inputs_RT,
            may_mask_RT,
            masking=self._masking,
            seed=self._seeds[split],
            step=0 if split == "train" else -1,
            rows=batch.sample_indices,
            words_RT=begins_RT.long().cumsum(-1) if self._masking.unit != "token" else None,
        )
        fields = {
            "inputs_RT": inputs_RT,
            "positions_RT": batch.positions_RT * (documents_RT > 0),
            "documents_RT": documents_RT,
            "labels_RT": labels_RT,
        }
        terms = int((labels_RT != IGNORED).sum())
        return ExampleBatch(fields, batch.sample_indices, terms, batch.tokens)

    def _documents(self, batch: TokenBatch) -> torch.Tensor:
        """The number of each token's document within its row, 0 on padding."""
        rows, length = batch.inputs_RT.shape
        documents_RT = (batch.positions_RT == 0).long().cumsum(-1)
        if self._packing:
            tokens_R = torch.full((rows,), length)
        else:  # a row holds one piece; its last token alone has no label
            tokens_R = (1 + (batch.labels_RT != IGNORED).sum(-1)).clamp(max=length)
        tokens_R[len(batch.sample_indices) :] = 0
        return documents_RT * (torch.arange(length) < tokens_R.unsqueeze(-1))


class MaskedPairRows:
    """A Change of rows that hold a pair of stretches each. Terms stay the pairs."""

    def __init__(self, section: MaskingTask, kinds: TokenKinds, *, seed: int) -> None:
        self._masking = masking_of(section, kinds)
        self._ordinary_V = torch.from_numpy(kinds.ordinary_V)
        self._begins_V = torch.from_numpy(kinds.begins_V)
        self._seeds = {"train": seed, "held_out": 0}

    def __call__(self, batch: ExampleBatch, split: Split) -> ExampleBatch:
        given_RT, documents_RT = batch.fields["inputs_RT"], batch.fields["documents_RT"]
        # A stretch may begin within a word; what is left of it there is one.
        begins_RT = self._begins_V[given_RT].clone()
        begins_RT[:, 1:] |= given_RT[:, :-1] == given_RT[:, :1]  # behind the first token, [CLS]
        begins_RT[:, 1:] |= batch.fields["segments_RT"].diff(dim=-1) != 0
        inputs_RT, labels_RT = masked_rows(
            given_RT,
            self._ordinary_V[given_RT] & (documents_RT > 0),
            masking=self._masking,
            seed=self._seeds[split],
            step=0 if split == "train" else -1,
            rows=batch.sample_indices,
            words_RT=begins_RT.long().cumsum(-1) if self._masking.unit != "token" else None,
        )
        fields = {**batch.fields, "inputs_RT": inputs_RT, "labels_RT": labels_RT}
        return ExampleBatch(fields, batch.sample_indices, batch.terms, batch.tokens)
