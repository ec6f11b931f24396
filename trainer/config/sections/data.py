"""What is trained on: sources of text, the tokenizer, and how documents become rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.config.sections.base import Section, Target


class _Source(Section):
    weight: Annotated[float, Field(gt=0)] = 1.0  # share of samples, relative to the other sources


class StdlibSource(_Source):
    """The Python standard library's own sources on this machine."""

    kind: Literal["stdlib"]


class FilesSource(_Source):
    """Files or globs. text: one document a file, or one a blank-line paragraph."""

    kind: Literal["files"]
    format: Literal["text", "jsonl", "parquet"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    text_key: str = "text"  # jsonl, parquet: the field that holds the text
    document: Literal["file", "paragraph"] = "file"  # text only
    on_bad_line: Literal["stop", "skip"] = "stop"
    max_document_bytes: Annotated[int, Field(gt=0)] = 64 * 2**20


class DatasetsSource(_Source):
    """A folder saved by `datasets`, or a hub name (streamed)."""

    kind: Literal["datasets"]
    path: str
    config_name: str | None = None
    split: str = "train"
    text_key: str = "text"
    streaming: bool = True


class CustomSource(_Source):
    """A class of the user's own package (see docs/add-a-thing.md), admitted by run.trust."""

    kind: Literal["custom"]
    target: Target
    settings: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    StdlibSource | FilesSource | DatasetsSource | CustomSource, Field(discriminator="kind")
]


class TrainedTokenizer(Section):
    """A byte-level BPE trained on a sample of the sources."""

    kind: Literal["train_bpe"]
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000, examples=[4096])]
    sample_bytes: Annotated[int, Field(ge=1_000)]  # text used for training, spread over all sources


class PretrainedTokenizer(Section):
    """A Hugging Face tokenizer: a folder or a tokenizer.json."""

    kind: Literal["pretrained"]
    path: str


Tokenizer = Annotated[TrainedTokenizer | PretrainedTokenizer, Field(discriminator="kind")]


class DataSection(Section):
    # tokens a row
    sequence_length: Annotated[int, Field(ge=2, le=1 << 30, examples=[256])]
    packing: bool  # several documents share a row; attention never crosses them
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    tokenizer: Tokenizer
    store_root: str  # where token stores are kept; shared by runs
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]  # share of documents for evaluation
    shard_tokens: Annotated[int, Field(ge=1_000)]  # tokens of one store file
    num_workers: Annotated[int, Field(ge=0)]  # processes of the preparation; 0: one a core
    prefetch_steps: Annotated[int, Field(ge=0)]  # steps read ahead by a thread; 0: none
