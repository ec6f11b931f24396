"""The model: a shape written out here, or a Hugging Face folder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.config.sections.adapters import Adapter, NoAdapter
from trainer.config.sections.base import Section

Family = Literal["llama", "mistral", "qwen3", "gpt2", "gpt_neox"]
EncoderFamily = Literal["bert", "roberta", "distilbert", "modernbert"]
EncoderDecoderFamily = Literal["t5", "bart"]
Count = Annotated[int, Field(ge=1)]
# Beyond any model there is, as in trainer/capacity/folder.py, which reads folders by anybody.


class _Model(Section):
    adapter: Adapter = Field(default_factory=NoAdapter)
    attention: Literal["sdpa", "flash_attention_2", "eager"]
    activation_checkpointing: bool
    compile: bool
    # Rows (tokens) of logits made at a time; 0: all at once. Full logits are never stored
    # when this is set, at the price of computing them twice.
    loss_chunk_tokens: Annotated[int, Field(ge=0)]


class ShapeModel(_Model):
    """Names are those of Hugging Face's config.json."""

    kind: Literal["shape"]
    family: Family
    # 0: the tokenizer's, rounded up to a multiple of 64
    vocab_size: Annotated[int, Field(ge=0, le=1 << 27, examples=[0])]
    hidden_size: Annotated[int, Field(ge=1, le=1 << 20, examples=[768])]
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 22)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)]
    num_attention_heads: Annotated[int, Field(ge=1, le=1 << 16, examples=[8])]
    num_key_value_heads: Annotated[int, Field(ge=1, le=1 << 16, examples=[1])]
    head_dim: Annotated[int, Field(ge=1, le=1 << 16, examples=[64])]
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30, examples=[2048])]
    tie_word_embeddings: bool
    initializer_range: Annotated[float, Field(gt=0)]
    norm_eps: Annotated[float, Field(gt=0)]
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    rope_scaling: dict[str, Any] | None = None
    # gpt_neox
    rotary_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(None, examples=[None])
    sliding_window: Count | None = Field(None, examples=[None])  # mistral
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EncoderShape(_Model):
    """An encoder. Names are those of Hugging Face's config.json, BERT's where families differ."""

    kind: Literal["encoder"]
    family: EncoderFamily
    # 0: the tokenizer's, rounded up to a multiple of 64
    vocab_size: Annotated[int, Field(ge=0, le=1 << 27, examples=[0])]
    hidden_size: Annotated[int, Field(ge=1, le=1 << 20, examples=[768])]
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 22)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)]
    num_attention_heads: Annotated[int, Field(ge=1, le=1 << 16, examples=[8])]
    max_position_embeddings: Annotated[int, Field(ge=3, le=1 << 30, examples=[512])]
    pad_token_id: Annotated[int, Field(ge=0, examples=[0])]
    initializer_range: Annotated[float, Field(gt=0)]
    norm_eps: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    type_vocab_size: Count | None = Field(None, examples=[None])  # bert, roberta
    # modernbert
    local_attention: Annotated[int, Field(ge=2)] | None = Field(None, examples=[None])
    global_attention_every: Count | None = Field(None, examples=[None])


class EncoderDecoderShape(_Model):
    """An encoder and a decoder that reads it. Names are those of encoders, where T5's or BART's
    config.json has others; heads, widths and sizes are those of both stacks.
    """

    kind: Literal["encoder_decoder"]
    family: EncoderDecoderFamily
    # 0: the tokenizer's, rounded up to a multiple of 64
    vocab_size: Annotated[int, Field(ge=0, le=1 << 27, examples=[0])]
    hidden_size: Annotated[int, Field(ge=1, le=1 << 20, examples=[512])]
    intermediate_size: Annotated[int, Field(ge=1, le=1 << 22)]
    num_hidden_layers: Annotated[int, Field(ge=1, le=4096)]  # of the encoder
    num_decoder_layers: Annotated[int, Field(ge=1, le=4096)]
    num_attention_heads: Annotated[int, Field(ge=1, le=1 << 16, examples=[8])]
    head_dim: Annotated[int, Field(ge=1, le=1 << 16, examples=[64])]
    pad_token_id: Annotated[int, Field(ge=0, examples=[0])]
    # what every target begins with
    decoder_start_token_id: Annotated[int, Field(ge=0, examples=[0])]
    tie_word_embeddings: bool
    # bart: standard deviation of initial weights; t5: a factor on those of its own rule
    initializer_range: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    # t5
    gated: bool | None = Field(None, examples=[None])
    norm_eps: Annotated[float, Field(gt=0)] | None = Field(None, examples=[None])
    relative_attention_num_buckets: Annotated[int, Field(ge=4)] | None = Field(
        None, examples=[None]
    )
    relative_attention_max_distance: Annotated[int, Field(ge=4)] | None = Field(
        None, examples=[None]
    )
    # bart
    max_position_embeddings: Annotated[int, Field(ge=2, le=1 << 30)] | None = Field(
        None, examples=[None]
    )


class FolderModel(_Model):
    """A Hugging Face folder: config.json, and safetensors when weights are wanted."""

    kind: Literal["folder"]
    path: str
    weights: Literal["pretrained", "fresh"]
    # 0: the folder's; more: entries for new tokens, which start as the mean of the others
    vocab_size: Annotated[int, Field(ge=0, le=1 << 27, examples=[0])]


Model = Annotated[
    ShapeModel | EncoderShape | EncoderDecoderShape | FolderModel, Field(discriminator="kind")
]
