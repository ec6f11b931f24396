"""One row of a micro-batch as a batch of its own: what a row does by itself.

Shapes: R rows, T and S positions, E examples, as in trainer/batch.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from trainer.batch import IGNORED, Batch, ExampleBatch, TokenBatch


def one_row(batch: Batch, row: int) -> Batch:
    """`row`: one of the real ones."""
    if isinstance(batch, TokenBatch):
        return _of_tokens(batch, row)
    assert isinstance(batch, ExampleBatch), type(batch)
    return _of_examples(batch, row)


def _of_tokens(batch: TokenBatch, row: int) -> TokenBatch:
    at = slice(row, row + 1)
    labels = batch.labels_RT[at]
    terms = int((labels != IGNORED).sum())
    samples = (batch.sample_indices[row],)
    return TokenBatch(batch.inputs_RT[at], labels, batch.positions_RT[at], samples, terms, terms)


def _of_examples(batch: ExampleBatch, row: int) -> ExampleBatch:
    width = batch.fields["inputs_RT"].shape[1]
    fields = {
        name: values[row : row + 1]
        for name, values in batch.fields.items()
        if name.endswith(("_RT", "_RS"))
    }
    num_examples = int(fields["documents_RT"].max())
    first_E = batch.fields.get("first_E")
    if first_E is not None:
        mine_E = (first_E >= 0) & (first_E // width == row)
        for name, values in batch.fields.items():
            if name.endswith(("_E", "_EC")):
                fields[name] = values[mine_E]
        fields["first_E"] = fields["first_E"] - row * width
        num_examples = int(mine_E.sum())
    tokens = sum(int((v > 0).sum()) for name, v in fields.items() if "documents" in name)
    terms: float = _labels(fields) if _terms_are_labels(batch) else num_examples
    for name in ("weights_RT", "weights_RS"):  # of tokens: terms are their sum
        terms = float(fields[name].sum(dtype=torch.float64)) if name in fields else terms
    return ExampleBatch(fields, (batch.sample_indices[row],), terms, tokens)


def _terms_are_labels(batch: ExampleBatch) -> bool:
    """Examples where both would do: there a label is an example's."""
    weights_E = batch.fields.get("weights_E")
    examples = None if weights_E is None else int(weights_E.sum())
    return examples != batch.terms and math.isclose(_labels(batch.fields), batch.terms)


def _labels(fields: Mapping[str, torch.Tensor]) -> float:
    """What they weigh, where tokens have weights."""
    for axis in ("RT", "RS"):
        if f"weights_{axis}" in fields:
            return float(fields[f"weights_{axis}"].sum(dtype=torch.float64))
    return sum(int((fields[n] != IGNORED).sum()) for n in ("labels_RT", "labels_RS") if n in fields)
