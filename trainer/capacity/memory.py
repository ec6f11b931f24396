"""Bytes on one rank at the peak of a step, and bytes of a checkpoint.

States follow ZeRO (Rajbhandari et al. 2020, sec. 3) with what DeepSpeed 0.19.8 adds: its own fp32
copy of the parameters also in fp32, a bucket (two with overlap) and stage 3's gathered weights.
Activations are the tensors autograd saves, counted from transformers 5.23's layers in the way of
Korthikanti et al. 2022, sec. 4.1; a test holds them against autograd itself. Not counted: the
CUDA context (about 0.5 GB), communication libraries, fragmentation, gradients of activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trainer.capacity import encoder_decoder
from trainer.capacity.encoder import LABELLED_SHARE
from trainer.capacity.head import BLOCK_ELEMENTS, head_bytes
from trainer.capacity.shape import (
    GATED,
    Shape,
    has_vocabulary,
    num_matrix_parameters,
    num_parameters,
    tensors,
)
from trainer.capacity.trainable import num_new, num_trained, num_trained_layer_matrices

Precision = Literal["fp32", "bf16", "autocast", "fp16"]
Place = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who holds what. `stage` None: plain PyTorch in one process. Units: elements where named."""

    world_size: int
    stage: int | None
    precision: Precision
    accumulate_in_fp32: bool
    optimizer: Literal["adamw", "sgd", "muon"]
    has_momentum: bool = True  # sgd
    max_grad_norm: float = 1.0
    offload_optimizer: Place = "none"
    offload_parameters: Place = "none"
    overlap_communication: bool = True
    bucket_elements: int = 0
    prefetch_elements: int = 0
    persistence_threshold_elements: int = 0
    background_saves: bool = False
    kept_states: int = 0  # of a rank's share, in its node's shared memory; the neighbour's included
    average: bool = False  # of the weights, beside the moments
    reference: bool = False  # a frozen copy of the model beside it
    starting: bool = False  # its matrices as they were, beside them; counted as all of the model
    canonical: bool = False  # moments, masters and sums in shares, two buckets; stage is 1


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What goes through the model at a time on one rank. `chunk_tokens` of logits; 0: all.

    `block_elements`: logits that the head widens to fp32 at a time, by device.
    """

    rows: int
    row_tokens: int
    checkpointing: bool
    chunk_tokens: int
    eager_attention: bool = False
    block_elements: int = BLOCK_ELEMENTS["cuda"]
    target_tokens: int = 0  # positions of a row of the decoder's, of encoder-decoders


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank's device; `host` is what offload moved to the host or its disk.

    `logits`: what the loss head holds at its worst moment, the gradient of its weight included.
    `staging`: the host's memory that background saves are copied to. `kept`: states in shared
    memory, a rank's part of what lies on its node.
    """

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    logits: int
    host: int
    staging: int
    kept: int

    @property
    def total(self) -> int:
        states = self.parameters + self.gradients + self.optimizer + self.buffers
        return states + self.activations + self.logits


def memory_per_rank(shape: Shape, layout: Layout, *, batch: MicroBatch) -> Memory:
    parameters = _parameters(shape, layout)
    gradients = _gradients(shape, layout)
    optimizer = _optimizer(shape, layout)
    host = 0
    if layout.offload_optimizer != "none":
        host += optimizer + gradients
        optimizer = gradients = 0
    if layout.offload_parameters != "none":
        persistent = _persistent(shape, layout) * _weight_bytes(layout.precision)
        host += parameters - persistent
        parameters = persistent
    return Memory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_buffers(shape, layout),
        activations=activations(shape, layout.precision, batch=batch),
        logits=_head(shape, layout.precision, batch=batch),
        host=host,
        staging=2 * _checkpoint_share(shape, layout) if layout.background_saves else 0,
        kept=layout.kept_states * _checkpoint_share(shape, layout),
    )


def checkpoint_bytes(shape: Shape, layout: Layout) -> int:
    """fp32 master weights and moments of what is trained, all ranks; headers and checksums (below
    0.1 %) left out.
    """
    return 4 * num_trained(shape) + 4 * moment_elements(shape, layout)


def _checkpoint_share(shape: Shape, layout: Layout) -> int:
    """A rank's part of a checkpoint. Saves take two: one is written while the other is filled."""
    return -(-checkpoint_bytes(shape, layout) // layout.world_size)


def moment_elements(shape: Shape, layout: Layout) -> int:
    """Elements of optimizer state: AdamW two a parameter; Muon one a layer matrix, else two. The
    average of the weights is one more."""
    average = num_trained(shape) if layout.average else 0
    if layout.optimizer == "sgd":
        return average + (num_trained(shape) if layout.has_momentum else 0)
    twice = 2 * num_trained(shape) + average
    return twice - (num_trained_layer_matrices(shape) if layout.optimizer == "muon" else 0)


def _weight_bytes(precision: Precision) -> int:
    return 2 if precision in ("bf16", "fp16") else 4


def _share(elements: int, layout: Layout, *, from_stage: int) -> int:
    """Elements of which this rank holds its part from a stage on. Parts are padded upwards."""
    sharded = layout.stage is not None and layout.stage >= from_stage
    return -(-elements // layout.world_size) if sharded else elements


def _parameters(shape: Shape, layout: Layout) -> int:
    count = num_parameters(shape)
    models = 2 if layout.reference or layout.starting else 1
    held = models * _share(count, layout, from_stage=3)
    if layout.stage == 3:
        held += _persistent(shape, layout)
    # Autocast keeps 16-bit copies of the matrices until the micro-step's backward is done.
    copies = models * 2 * num_matrix_parameters(shape) if layout.precision == "autocast" else 0
    new = _share(num_new(shape), layout, from_stage=3)
    new *= _weight_bytes(layout.precision) + (2 if copies else 0)
    return held * _weight_bytes(layout.precision) + copies + new


def _persistent(shape: Shape, layout: Layout) -> int:
    """Elements of parameters that stage 3 keeps whole because they are small."""
    limit = layout.persistence_threshold_elements
    models = 2 if layout.reference or layout.starting else 1
    return models * sum(g.elements for g in tensors(shape) if g.elements_each < limit)


def _gradients(shape: Shape, layout: Layout) -> int:
    """Accumulated gradients, and for the update their fp32 copy where they are 16-bit."""
    count = num_trained(shape)
    if layout.canonical:  # one micro-batch's, and the sum of this rank's share
        share = _share(count, layout, from_stage=1)
        return _weight_bytes(layout.precision) * count + 4 * share
    each = 4 if layout.accumulate_in_fp32 else _weight_bytes(layout.precision)
    held = _share(count, layout, from_stage=2) * each
    if each == 4:
        # Stage 1 accumulates in fp32 beside the 16-bit gradients that backward makes.
        beside = layout.stage in (None, 0, 1) and _weight_bytes(layout.precision) == 2
        return held + (2 * count if beside else 0)
    return held + 4 * _share(count, layout, from_stage=1)


def _optimizer(shape: Shape, layout: Layout) -> int:
    """Moments, and the fp32 master weights where the weights themselves are not that."""
    moments = 4 * _share(moment_elements(shape, layout), layout, from_stage=1)
    has_own_copy = _weight_bytes(layout.precision) == 2 or (layout.stage or 0) >= 1
    master = 4 * _share(num_trained(shape), layout, from_stage=1) if has_own_copy else 0
    return moments + master


def _buffers(shape: Shape, layout: Layout) -> int:
    """Communication buckets; for stage 3 also the weights gathered at a time."""
    if layout.stage is None:
        return 0
    count = num_parameters(shape)
    weight = _weight_bytes(layout.precision)
    if layout.canonical:
        return 2 * min(layout.bucket_elements, count) * weight
    if layout.stage < 3:
        each = 4 if layout.stage == 1 and layout.accumulate_in_fp32 else weight
        whole = layout.bucket_elements * each  # allocated in full, however small the model
        gathered = min(layout.bucket_elements, count) * weight if layout.stage else 0
        return whole * (2 if layout.overlap_communication and layout.stage else 1) + gathered
    outside = max(g.elements for g in tensors(shape) if g.copies == 1)
    one_layer = sum(g.elements_each for g in tensors(shape) if g.copies > 1)
    live = max(outside, one_layer) + min(layout.prefetch_elements, count)
    return layout.bucket_elements * weight + min(live, count) * weight


def activations(shape: Shape, precision: Precision, *, batch: MicroBatch) -> int:
    """Tensors saved for the backward, logits left out."""
    if shape.is_encoder_decoder:
        return _of_two_stacks(shape, precision, batch=batch)
    tokens = batch.rows * batch.row_tokens
    layer = _layer_bytes_per_token(shape, precision, batch)
    width = shape.hidden_size
    compute = 4 if precision == "fp32" else 2
    residual = 4 if precision in ("fp32", "autocast") else 2
    ends = (4 + compute + residual) * width  # final norm and the head's input
    if batch.checkpointing:
        kept = residual * width * shape.num_hidden_layers
        return tokens * (kept + layer + ends)
    return tokens * (layer * shape.num_hidden_layers + ends)


def _of_two_stacks(shape: Shape, precision: Precision, *, batch: MicroBatch) -> int:
    """Of both stacks, and what stands behind them: final norms and the head's input."""
    source, target = batch.row_tokens, batch.target_tokens or batch.row_tokens
    of_source, of_target = (_row_bytes(shape, precision, batch, reads) for reads in (0, source))
    compute = 4 if precision == "fp32" else 2
    residual = 4 if precision in ("fp32", "autocast") else 2
    ends = (source + target) * (4 + compute + residual) * shape.hidden_size
    encoder, decoder = shape.num_hidden_layers, shape.num_decoder_layers
    if batch.checkpointing:
        kept = residual * shape.hidden_size * (source * encoder + target * decoder)
        # The bias of T5's positions is made in the first layer, and all others keep it.
        return batch.rows * (kept + max(of_source, of_target) + ends)
    return batch.rows * (of_source * encoder + of_target * decoder + ends)


def _row_bytes(shape: Shape, precision: Precision, batch: MicroBatch, reads: int) -> int:
    """Of one layer for one row: the encoder's, or of the decoder, which `reads` a source."""
    own = (batch.target_tokens or batch.row_tokens) if reads else batch.row_tokens
    kept = encoder_decoder.layer_bytes(
        shape.family, precision, width=shape.hidden_size, inner=shape.intermediate_size,
        heads=shape.num_attention_heads, head_dim=shape.head_dim, gated=shape.gated, own=own,
        source=reads,
    )  # fmt: skip
    if shape.dropout:  # a mask of one byte for each place that it falls on
        kept += own * (3 if reads else 2) * shape.hidden_size
    if batch.eager_attention:  # whole scores and their softmax, of one or two attentions
        compute = 4 if precision == "fp32" else 2
        kept += (4 + compute) * shape.num_attention_heads * own * (own + reads)
    return kept


def _layer_bytes_per_token(shape: Shape, precision: Precision, batch: MicroBatch) -> int:
    """Bytes that one layer saves for one token, equal to what autograd was measured to save."""
    cast = precision == "autocast"
    a = 4 if precision == "fp32" else 2
    d, f, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
    queries, keys = heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    scores = (4 + a) * heads * batch.row_tokens if batch.eager_attention else 4 * heads
    masks = 2 * d if shape.dropout else 0  # the gated families drop in attention only
    if shape.is_encoder:
        # The mask of blocks is widened to the scores' dtype once a layer; autocast keeps what
        # norms read in fp32.
        wide = 4 if cast else a
        mask = a * batch.row_tokens + 4 * wide
        if shape.family == "modernbert":
            return (24 if cast else 10 * a) * d + 4 * a * f + mask + scores + masks
        return (24 if cast else 8 * a) * d + 2 * a * f + mask + scores + masks
    if shape.family in GATED:
        # Norms keep their input in fp32 and the normed value; autocast casts the input of each of
        # the five products anew.
        norms = 2 * (8 if cast else 4 + a) * d + 8
        inputs = (10 if cast else 2 * a) * d
        attention = a * (2 * queries + 2 * keys) + scores
        if shape.family == "qwen3":
            attention += (4 + a) * (queries + keys) + 4 * (heads + shape.num_key_value_heads)
        return norms + inputs + attention + 4 * a * f
    # GPT-2's gelu is written out and saves five values; NeoX's is one kernel and saves two.
    if shape.family == "gpt2":
        return (20 if cast else 8 * a) * d + 5 * a * f + scores + (16 if cast else 4 * a) + masks
    return (22 if cast else 10 * a) * d + 2 * a * f + scores + (16 if cast else 4 * a) + masks


def _head(shape: Shape, precision: Precision, *, batch: MicroBatch) -> int:
    tokens = batch.rows * (batch.target_tokens or batch.row_tokens)
    if not has_vocabulary(shape):  # labels are few: logits, their softmax and their gradient
        return 3 * 4 * tokens * max(shape.num_labels, 2)
    if shape.is_encoder:
        tokens = math.ceil(tokens * LABELLED_SHARE)
    return head_bytes(
        tokens,
        shape.vocab_size,
        hidden_size=shape.hidden_size,
        precision=precision,
        chunk_tokens=batch.chunk_tokens,
        block_elements=batch.block_elements,
    )
