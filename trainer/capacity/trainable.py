"""How much of a model is trained: what has gradients, moments and a place in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from trainer.capacity.adaptation import (
    VIRTUAL,
    Adaptation,
    is_feed_forward,
    is_in_layer,
    meant,
    named,
    nothing_matched,
    within_layer,
)
from trainer.capacity.hf_names import Dims, parameters
from trainer.capacity.shape import Shape, num_layer_matrix_elements, num_parameters
from trainer.capacity.two_stack_names import DISTANCES


def num_trained(shape: Shape) -> int:
    """Elements that are trained, an adapter's own with them."""
    if shape.adaptation is None:
        return num_parameters(shape)
    return num_new(shape) + sum(_size(dims) for _, dims in _trained_of_base(shape))


def num_trained_layer_matrices(shape: Shape) -> int:
    """Of those, elements of matrices in layers: what Muon moves."""
    if shape.adaptation is None:
        return num_layer_matrix_elements(shape)
    kept = sum(_size(dims) for name, dims in _trained_of_base(shape) if _is_matrix(name, dims))
    if shape.adaptation is not None and shape.adaptation.kind in VIRTUAL:
        return kept
    return kept + sum(_size(dims) for dims in _new(shape) if len(dims) == 2)


def num_new(shape: Shape) -> int:
    """Elements that the model without its adapter has not."""
    return 0 if shape.adaptation is None else sum(_size(dims) for dims in _new(shape))


def unmatched(shape: Shape) -> Iterator[tuple[str, str]]:
    """(setting, what is wrong) of every pattern that matches nothing, naming what there is."""
    adaptation = shape.adaptation
    if adaptation is None:
        return
    every = list(parameters(shape))
    if adaptation.kind == "freeze":
        for pattern in adaptation.patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in every):
                yield "frozen", nothing_matched(pattern, [name for name, _ in every])
        return
    matrices = [name for name, _ in _matrices(shape)]
    for pattern in adaptation.patterns:
        if not any(meant(name, pattern, adaptation.kind) for name in matrices):
            short = sorted({within_layer(name) for name in matrices})
            yield "targets", nothing_matched(pattern, short)
    for pattern in adaptation.whole:
        if not any(_is_within(name, pattern) for name, _ in every):
            outside = sorted({n.rpartition(".")[0] for n, _ in every if not is_in_layer(n)})
            yield "modules_to_save", nothing_matched(pattern, outside)


def _trained_of_base(shape: Shape) -> Iterator[tuple[str, Dims]]:
    adaptation = shape.adaptation
    assert adaptation is not None
    for name, dims in parameters(shape):
        if adaptation.kind == "freeze":
            if not any(fnmatchcase(name, pattern) for pattern in adaptation.patterns):
                yield name, dims
        elif _is_heads(shape, name) or any(_is_within(name, p) for p in adaptation.whole):
            yield name, dims


def _new(shape: Shape) -> Iterator[Dims]:
    adaptation = shape.adaptation
    assert adaptation is not None
    if adaptation.kind == "freeze":
        return
    if adaptation.kind in VIRTUAL:
        yield from _virtual(shape, adaptation)
    for name, (out, into) in _matrices(shape):
        if any(meant(name, pattern, adaptation.kind) for pattern in adaptation.patterns):
            yield from _beside(name, out, into, adaptation)


def _beside(name: str, out: int, into: int, adaptation: Adaptation) -> Iterator[Dims]:
    if adaptation.kind == "ia3":
        yield (into if is_feed_forward(name) else out,)
    elif adaptation.kind == "bottleneck":
        yield from ((adaptation.size, out), (adaptation.size,), (out, adaptation.size), (out,))
    else:
        yield from ((adaptation.size, into), (out, adaptation.size))
        if adaptation.kind == "dora":
            yield (out,)


def _virtual(shape: Shape, adaptation: Adaptation) -> Iterator[Dims]:
    """Of peft's PromptEmbedding, PromptEncoder (three layers) and PrefixEncoder."""
    tokens, width = adaptation.size, shape.hidden_size
    if adaptation.kind == "prefix":
        keys = width * shape.num_key_value_heads // shape.num_attention_heads
        yield (tokens, 2 * shape.num_hidden_layers * keys)
        return
    yield (tokens, width)
    if adaptation.kind == "p_tuning":
        yield from ((width, width), (width,)) * 3


def _matrices(shape: Shape) -> Iterator[tuple[str, Dims]]:
    for name, dims in parameters(shape):
        if _is_matrix(name, dims):
            yield name.removesuffix(".weight"), dims


def _is_matrix(name: str, dims: Dims) -> bool:
    """One of a layer's."""
    return len(dims) == 2 and is_in_layer(name) and DISTANCES not in name


def _is_heads(shape: Shape, name: str) -> bool:
    """A head on a trunk is trained in any case, and a pooler under it."""
    if not shape.is_encoder and shape.head != "reward":
        return False
    trunk = "model." if shape.family in ("modernbert",) or not shape.is_encoder else shape.family
    return not name.startswith(trunk) or ".pooler." in name


def _is_within(name: str, pattern: str) -> bool:
    """Is the parameter one of a module that the pattern names, or of one below it?"""
    parts = name.split(".")[:-1]
    return any(named(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _size(dims: Dims) -> int:
    size = 1
    for length in dims:
        size *= length
    return size
