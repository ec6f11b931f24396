"""A model's shape in numbers, the tensors it consists of, and the FLOPs of a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from trainer.capacity import encoder, encoder_decoder
from trainer.capacity.adaptation import Adaptation
from trainer.capacity.encoder import ENCODERS, EncoderFamily
from trainer.capacity.encoder_decoder import ENCODER_DECODERS, EncoderDecoderFamily

Family = Literal["llama", "mistral", "qwen3", "gpt2", "gpt_neox"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen3", "gpt2", "gpt_neox")
GATED: tuple[Family, ...] = ("llama", "mistral", "qwen3")  # rotary, RMSNorm, gated feed-forward


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Names are those of Hugging Face's config.json."""

    family: Family | EncoderFamily | EncoderDecoderFamily
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool = False  # llama, qwen3
    mlp_bias: bool = False  # llama
    dropout: float = 0.0
    sliding_window: int | None = None  # mistral; qwen3 where its folder uses one
    adaptation: Adaptation | None = None  # None: all of it is trained
    # What stands on it, as HeadSpec.kind of trainer/models says; next_token for causal models.
    head: str = "next_token"
    num_labels: int = 0
    # encoders
    type_vocab_size: int = 0  # bert, roberta
    pad_token_id: int = 0
    norm_bias: bool = False  # modernbert, as the next two
    classifier_bias: bool = False
    decoder_bias: bool = True
    # encoder-decoders; num_hidden_layers are the encoder's
    num_decoder_layers: int = 0
    gated: bool = False  # t5, as the next
    relative_attention_num_buckets: int = 0
    # Positions of either stack that run for a token which is counted.
    source_share: float = 0.5
    target_share: float = 0.5

    @property
    def is_encoder(self) -> bool:
        return self.family in ENCODERS

    @property
    def is_encoder_decoder(self) -> bool:
        return self.family in ENCODER_DECODERS

    @property
    def max_row_tokens(self) -> int:
        """The longest row that has a position for each of its tokens."""
        return self.max_position_embeddings - encoder.first_position(self.family, self.pad_token_id)


@dataclass(frozen=True)
class TensorGroup:
    """Equal tensors of a model: `copies` parameters of shape `dims` (one a layer, or one)."""

    name: str  # Hugging Face's, the layer number left out
    dims: tuple[int, ...]
    copies: int

    @property
    def elements_each(self) -> int:
        return prod(self.dims)

    @property
    def elements(self) -> int:
        return self.elements_each * self.copies


def tensors(shape: Shape) -> tuple[TensorGroup, ...]:
    """Every parameter of the model, tied ones once.

    Source: modeling_{llama,mistral,qwen3,gpt2,gpt_neox}.py of transformers 5.23.
    """
    if shape.is_encoder:
        return tuple(_encoder(shape))
    if shape.is_encoder_decoder:
        return tuple(_encoder_decoder(shape))
    layers = shape.num_hidden_layers
    of_layer = _gated_layer(shape) if shape.family in GATED else _plain_layer(shape)
    inside = (TensorGroup(name, dims, layers) for name, dims in of_layer)
    return (*_outside(shape), *inside)


def num_parameters(shape: Shape) -> int:
    return sum(group.elements for group in tensors(shape))


def num_matrix_parameters(shape: Shape) -> int:
    """Parameters in matrix products: the layers' matrices and the head, not the embeddings."""
    inside = num_layer_matrix_elements(shape)
    if not shape.is_encoder:
        outputs = shape.vocab_size if has_vocabulary(shape) else shape.num_labels
        return inside + outputs * shape.hidden_size
    head = sum(g.elements for g in tensors(shape) if len(g.dims) == 2 and g.name.startswith("head"))
    return inside + head + (shape.vocab_size * shape.hidden_size if has_vocabulary(shape) else 0)


def has_vocabulary(shape: Shape) -> bool:
    """Does the head give one logit for each entry of the vocabulary?"""
    return shape.head in ("next_token", "mlm", "nsp", "seq2seq")


def num_layer_matrix_elements(shape: Shape) -> int:
    """Elements of the layers' matrices: what Muon moves."""
    return sum(g.elements for g in tensors(shape) if len(g.dims) == 2 and not _is_outside(g))


def flops_per_token(shape: Shape, row_tokens: int) -> float:
    """Forward and backward of one token in a row of `row_tokens`: 6 N + 12 L d T.

    N counts parameters in matrix products (embedding look-ups cost none), d is heads x head_dim,
    and attention counts in full, not its causal half. Recomputation does not count. Of a masked
    LM's head, the share of tokens that goes through it; heads on an example's first token: none.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    if shape.is_encoder_decoder:
        return _flops_of_two_stacks(shape, row_tokens)
    width = shape.num_attention_heads * shape.head_dim
    attention = 12 * shape.num_hidden_layers * width * row_tokens
    layers, whole = num_layer_matrix_elements(shape), num_matrix_parameters(shape)
    share = _head_share(shape)
    return float(6 * (layers + share * (whole - layers)) + attention)


def _flops_of_two_stacks(shape: Shape, row_tokens: int) -> float:
    """Of a token of source or target, as often as each comes. The source's go through the keys and
    values of the decoder's cross-attention; the target's attend twice, and meet the vocabulary.
    """
    width = shape.num_attention_heads * shape.head_dim
    attention = 12 * width * row_tokens
    encoder_, decoder, keys = (
        sum(g.elements for g in tensors(shape) if len(g.dims) == 2 and g.name.startswith(begin))
        for begin in (("encoder.",), ("decoder.",), ("decoder.cross.k.", "decoder.cross.v."))
    )
    source = 6 * (encoder_ + keys) + attention * shape.num_hidden_layers
    head = shape.vocab_size * shape.hidden_size
    target = 6 * (decoder - keys + head) + 2 * attention * shape.num_decoder_layers
    return shape.source_share * source + shape.target_share * target


def _head_share(shape: Shape) -> float:
    """Of all tokens, how many go through the head."""
    if shape.head in ("mlm", "nsp"):
        return encoder.LABELLED_SHARE
    return 0.0 if shape.head in ("sequence", "reward") else 1.0


def _is_outside(group: TensorGroup) -> bool:
    return group.name.startswith(("embed", "position", "head"))


def _outside(shape: Shape) -> Iterator[TensorGroup]:
    vocab, width = shape.vocab_size, shape.hidden_size
    yield TensorGroup("embedding.weight", (vocab, width), 1)
    if shape.family == "gpt2":
        yield TensorGroup("position_embedding.weight", (shape.max_position_embeddings, width), 1)
    yield TensorGroup("final_norm.weight", (width,), 1)
    if shape.family not in GATED:
        yield TensorGroup("final_norm.bias", (width,), 1)
    if shape.head == "reward":
        yield TensorGroup("head.weight", (1, width), 1)
    elif not shape.tie_word_embeddings:
        yield TensorGroup("head.weight", (vocab, width), 1)


def _gated_layer(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    products = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
    products["o_proj"] = (width, queries)
    for name, dims in products.items():
        yield f"self_attn.{name}.weight", dims
        if shape.attention_bias:
            yield f"self_attn.{name}.bias", dims[:1]
    if shape.family == "qwen3":
        yield "self_attn.q_norm.weight", (shape.head_dim,)
        yield "self_attn.k_norm.weight", (shape.head_dim,)
    for name, dims in {
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }.items():
        yield f"mlp.{name}.weight", dims
        if shape.mlp_bias:
            yield f"mlp.{name}.bias", dims[:1]
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)


def _plain_layer(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = shape.hidden_size, shape.intermediate_size
    for name, out, into in (
        ("attention.query_key_value", 3 * width, width),
        ("attention.dense", width, width),
        ("mlp.up", inner, width),
        ("mlp.down", width, inner),
    ):
        yield f"{name}.weight", (out, into)
        yield f"{name}.bias", (out,)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def _encoder(shape: Shape) -> Iterator[TensorGroup]:
    width, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    said = {"vocab": shape.vocab_size, "width": width, "labels": shape.num_labels}
    if shape.family == "modernbert":
        yield TensorGroup("embedding.weight", (shape.vocab_size, width), 1)
        for name in ("embedding_norm", "final_norm", "attention_norm"):
            copies = layers - 1 if name == "attention_norm" else 1
            for full, dims in encoder.norm(name, width, bias=shape.norm_bias):
                yield TensorGroup(full, dims, copies)
        of_layer = encoder.modernbert_layer(
            width, inner, attention_bias=shape.attention_bias, mlp_bias=shape.mlp_bias,
            norm_bias=shape.norm_bias,
        )  # fmt: skip
        biases = (shape.classifier_bias, shape.norm_bias, shape.decoder_bias)
        head = encoder.modernbert_head(shape.head, **said, biases=biases)
    else:
        segments = 0 if shape.family == "distilbert" else shape.type_vocab_size
        positions = shape.max_position_embeddings
        for full, dims in encoder.bert_embeddings(
            shape.vocab_size, width, positions=positions, segments=segments
        ):
            yield TensorGroup(full, dims, 1)
        of_layer = encoder.bert_layer(width, inner)
        head = encoder.bert_head(shape.family, shape.head, **said)
    for full, dims in of_layer:
        yield TensorGroup(full, dims, layers)
    for full, dims in head:
        yield TensorGroup(full, dims, 1)


def _encoder_decoder(shape: Shape) -> Iterator[TensorGroup]:
    width, heads = shape.hidden_size, shape.num_attention_heads
    for name, dims, copies in encoder_decoder.outside(
        shape.family, vocab=shape.vocab_size, width=width, heads=heads,
        positions=shape.max_position_embeddings, buckets=shape.relative_attention_num_buckets,
        tied=shape.tie_word_embeddings,
    ):  # fmt: skip
        yield TensorGroup(name, dims, copies)
    stacks = {"encoder": shape.num_hidden_layers, "decoder": shape.num_decoder_layers}
    for stack, layers in stacks.items():
        for name, dims in encoder_decoder.layer(
            shape.family, width=width, inner=shape.intermediate_size,
            heads_width=heads * shape.head_dim, gated=shape.gated, crosses=stack == "decoder",
        ):  # fmt: skip
            yield TensorGroup(f"{stack}.{name}", dims, layers)
