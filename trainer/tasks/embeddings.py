"""What is added to a model's token embeddings for a while, and to which example a position belongs.

Shapes: R rows, T positions, H width of the embeddings, E examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainer.batch import ExampleBatch


def inner(model: torch.nn.Module) -> Any:
    """The model without an engine's wrapper, which takes note of every backward of its outputs."""
    return getattr(model, "module", model)


def embedding_of(model: torch.nn.Module) -> nn.Module:
    found: nn.Module = inner(model).hf.get_input_embeddings()
    return found


def width_of(model: torch.nn.Module) -> int:
    embedding: Any = embedding_of(model)  # its weight may be sharded, and then has no shape
    return int(embedding.embedding_dim)


@contextmanager
def added(model: torch.nn.Module, more_RTH: torch.Tensor) -> Iterator[None]:
    """Within it `more_RTH` is added to what the token embedding gives: before positions and norms.

    The output and not the parameter, so that it does not matter who holds which part of that.
    """

    def add(_module: nn.Module, _given: Any, out_RTH: torch.Tensor) -> torch.Tensor:
        return out_RTH + more_RTH.to(out_RTH.dtype)

    handle = embedding_of(model).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def inputs_of(batch: Any) -> torch.Tensor:
    """Token ids (R, T)."""
    inputs_RT: torch.Tensor
    inputs_RT = batch.fields["inputs_RT"] if isinstance(batch, ExampleBatch) else batch.inputs_RT
    return inputs_RT


def examples_of(batch: Any) -> torch.Tensor:
    """(R, T): 0, 1, ... the number of the position's example within its row; -1: padding.

    Of text a document, or a part of one, is an example.
    """
    if isinstance(batch, ExampleBatch):
        documents_RT = batch.fields.get("documents_RT")
        if documents_RT is not None:
            return documents_RT.long() - 1
        examples_RT = torch.zeros_like(inputs_of(batch))
    else:
        starts_RT = batch.positions_RT == 0  # a new tensor
        starts_RT[:, 0] = True
        examples_RT = starts_RT.long().cumsum(-1) - 1
    examples_RT[len(batch.sample_indices) :] = -1
    return examples_RT


def numbered(examples_RT: torch.Tensor) -> torch.Tensor:
    """The same with numbers that go on from row to row."""
    counts_R = examples_RT.amax(-1) + 1
    before_R = counts_R.cumsum(0) - counts_R
    return torch.where(examples_RT < 0, examples_RT, examples_RT + before_R[:, None])
