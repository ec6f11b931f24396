"""The tensors of encoders and their heads.

Source: modeling_{bert,roberta,distilbert,modernbert}.py of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

EncoderFamily = Literal["bert", "roberta", "distilbert", "modernbert"]
ENCODERS: tuple[EncoderFamily, ...] = ("bert", "roberta", "distilbert", "modernbert")

# Of the masked LM's positions; what BERT and everybody after it chose. Only they meet the
# vocabulary, so FLOPs count it for them alone.
LABELLED_SHARE: Final = 0.15

Dims = tuple[int, ...]


def first_position(family: str, pad_token_id: int) -> int:
    """Positions that no token ever has: RoBERTa's count from behind the padding's own."""
    return pad_token_id + 1 if family == "roberta" else 0


def linear(name: str, out: int, into: int, *, bias: bool = True) -> Iterator[tuple[str, Dims]]:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int, *, bias: bool = True) -> Iterator[tuple[str, Dims]]:
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def bert_embeddings(
    vocab: int, width: int, *, positions: int, segments: int
) -> Iterator[tuple[str, Dims]]:
    yield "embedding.weight", (vocab, width)
    yield "position_embedding.weight", (positions, width)
    if segments:
        yield "position_embedding.segments.weight", (segments, width)
    yield from norm("embedding_norm", width)


def bert_layer(width: int, inner: int) -> Iterator[tuple[str, Dims]]:
    """Of BERT, RoBERTa and DistilBERT alike."""
    for name in ("query", "key", "value", "output"):
        yield from linear(f"attention.{name}", width, width)
    yield from norm("attention_norm", width)
    yield from linear("mlp.up", inner, width)
    yield from linear("mlp.down", width, inner)
    yield from norm("mlp_norm", width)


def modernbert_layer(
    width: int, inner: int, *, attention_bias: bool, mlp_bias: bool, norm_bias: bool
) -> Iterator[tuple[str, Dims]]:
    """The attention's norm left out: the first layer has none."""
    yield from linear("attention.Wqkv", 3 * width, width, bias=attention_bias)
    yield from linear("attention.Wo", width, width, bias=attention_bias)
    yield from norm("mlp_norm", width, bias=norm_bias)
    yield from linear("mlp.Wi", 2 * inner, width, bias=mlp_bias)
    yield from linear("mlp.Wo", width, inner, bias=mlp_bias)


def bert_head(
    family: str, head: str, *, vocab: int, width: int, labels: int
) -> Iterator[tuple[str, Dims]]:
    """With the pooler, where a head stands on one. The vocabulary's projection is tied."""
    if head in ("mlm", "nsp"):
        yield from linear("head.transform", width, width)
        yield from norm("head.norm", width)
        yield "head.bias", (vocab,)
    if head in ("sequence", "nsp"):
        yield from linear("head.pooler", width, width)
    yield from _labels(head, width, labels)


def modernbert_head(
    head: str, *, vocab: int, width: int, labels: int, biases: tuple[bool, bool, bool]
) -> Iterator[tuple[str, Dims]]:
    """`biases`: of the dense layer, of its norm, of the vocabulary's projection."""
    dense, norms, decoder = biases
    yield from linear("head.transform", width, width, bias=dense)
    yield from norm("head.norm", width, bias=norms)
    if head == "mlm" and decoder:
        yield "head.bias", (vocab,)
    yield from _labels(head, width, labels)


def _labels(head: str, width: int, labels: int) -> Iterator[tuple[str, Dims]]:
    count = {"sequence": labels, "tokens": labels, "spans": 2, "nsp": 2}.get(head, 0)
    if count:
        yield from linear("head.classifier", count, width)
