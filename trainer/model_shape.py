"""What a model's settings come to in its shape, its adapter's with them, before it is built."""

from __future__ import annotations

import math
from typing import Any

from trainer.capacity.adaptation import Adaptation
from trainer.capacity.encoder_decoder import ANY_LENGTH
from trainer.capacity.shape import Shape
from trainer.capacity.trainable import unmatched
from trainer.config.schema import Config
from trainer.config.sections.adapters import (
    Adapter,
    BottleneckAdapter,
    FrozenLayers,
    LoraAdapter,
    NoAdapter,
    PromptAdapter,
)
from trainer.config.sections.model import EncoderDecoderShape, EncoderShape
from trainer.config.sections.tasks import Seq2SeqTask, SpanDenoisingTask
from trainer.errors import Problem


def of_an_encoder(model: EncoderShape) -> dict[str, Any]:
    return {
        "num_key_value_heads": model.num_attention_heads,
        "head_dim": model.hidden_size // model.num_attention_heads,
        "tie_word_embeddings": True,
        "head": "hidden",
        "type_vocab_size": model.type_vocab_size or 0,
    }


def of_an_encoder_decoder(model: EncoderDecoderShape) -> dict[str, Any]:
    return {
        "num_key_value_heads": model.num_attention_heads,
        "gated": bool(model.gated),
        "relative_attention_num_buckets": model.relative_attention_num_buckets or 0,
        "max_position_embeddings": model.max_position_embeddings or ANY_LENGTH,
    }


def two_stacks(config: Config) -> dict[str, Any]:
    """The head, and how many positions of source and target run for a token that is counted: of
    pairs both are counted, and taken to be as many; of text, its own tokens.
    """
    task = config.task
    if not isinstance(task, SpanDenoisingTask):
        return {"head": "seq2seq", "source_share": 0.5, "target_share": 0.5}
    spans = task.rate / task.mean_length
    shares = {"source_share": 1 - task.rate + spans, "target_share": task.rate + spans}
    return {"head": "seq2seq", **shares}


def target_tokens(config: Config) -> int:
    """Positions of a row of targets, at most; of text those of one whole document."""
    task, row = config.task, config.data.sequence_length
    if isinstance(task, SpanDenoisingTask):
        return math.ceil(row * (task.rate + task.rate / task.mean_length)) + 2
    if isinstance(task, Seq2SeqTask) and not config.data.packing:
        return min(task.target_tokens, row)
    return row


def adaptation_of(adapter: Adapter) -> Adaptation | None:
    if isinstance(adapter, NoAdapter):
        return None
    if isinstance(adapter, FrozenLayers):
        return Adaptation("freeze", adapter.frozen)
    if isinstance(adapter, PromptAdapter):
        return Adaptation(adapter.kind, (), adapter.virtual_tokens)
    size = 0
    if isinstance(adapter, LoraAdapter):
        size = adapter.rank
    elif isinstance(adapter, BottleneckAdapter):
        size = adapter.size
    kind: Any = adapter.kind
    return Adaptation(kind, adapter.targets, size, adapter.modules_to_save)


def adapter_misfits(config: Config, shape: Shape) -> list[Problem]:
    """Patterns that match nothing; virtual tokens that the model has no positions for."""
    said = [Problem(f"model.adapter.{where}", what, "") for where, what in unmatched(shape)]
    return [*said, *_virtual_misfits(config, shape)]


def prefix_misfits(config: Config, shape: Shape) -> list[Problem]:
    """Models that cannot read a prompt both ways and then go on."""
    if not isinstance(config.task, Seq2SeqTask) or not config.task.prefix_lm:
        return []
    where, fix = "task.prefix_lm", "task.prefix_lm=false"
    if shape.is_encoder_decoder:
        what = f"{shape.family} reads its source both ways already, in a stack of its own"
    elif shape.sliding_window is not None:
        what = (
            f"layers of {shape.family} see no further than {shape.sliding_window:,} tokens (a "
            "sliding window), and a prompt is read whole"
        )
    else:
        return []
    return [Problem(where, what, fix)]


def _virtual_misfits(config: Config, shape: Shape) -> list[Problem]:
    """Virtual tokens take positions of the model's."""
    adapter, row, limit = config.model.adapter, config.data.sequence_length, shape.max_row_tokens
    if not isinstance(adapter, PromptAdapter):
        return []
    if shape.is_encoder_decoder:
        what = f"virtual tokens stand before a decoder's row, and {shape.family} has two stacks"
        return [Problem("model.adapter", what, "model/adapter=lora")]
    if row + adapter.virtual_tokens <= limit:
        return []
    what = f"{adapter.virtual_tokens} before rows of {row:,} are more than its {limit:,} positions"
    fix = f"data.sequence_length={max(2, limit - adapter.virtual_tokens)}"
    return [Problem("model.adapter.virtual_tokens", what, fix)]
