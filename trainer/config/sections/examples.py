"""Where labelled examples come from: files people have, and which of their columns mean what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

# What a column can mean. A task takes some of these; trainer/data/encodings/ says which.
FieldName = Literal[
    "id", "group", "weight",
    "text", "text_pair", "label", "labels",
    "tokens", "tags", "weights",
    "head", "tail",
    "question", "context", "answers",
    "source", "target", "references",
    "messages", "tools", "prompt", "chosen", "rejected",
]  # fmt: skip
FormatName = Literal[
    "auto", "jsonl", "json", "csv", "tsv", "parquet", "datasets", "conll", "squad", "parallel"
]
ChatName = Literal["auto", "messages", "sharegpt", "alpaca", "turns"]
Columns = str | Annotated[tuple[str, ...], Field(min_length=1)]


class RecordsSource(Section):
    """Files or globs, a folder saved by `datasets`, or a hub name: one example a row.

    `columns`: {our name: the file's}. A dotted name looks inside ("translation.en"); several
    names make a list of a field that is one (references, labels), else a text joined by spaces.
    """

    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    format: FormatName = "auto"  # auto: by the file's name and beginning
    columns: dict[FieldName, Columns] = Field(default_factory=dict)
    on_bad_line: Literal["stop", "skip"] = "stop"
    max_row_bytes: Annotated[int, Field(gt=0)] = 64 * 2**20
    target_paths: tuple[str, ...] = ()  # parallel: the other language, line by line
    # csv, tsv
    header: bool = True  # false: `columns` numbers them from 1
    delimiter: Annotated[str, Field(max_length=1)] = ""  # "": the one the first line holds
    quotes: bool | None = None  # whether "..." quotes a cell; null: in csv, not in tsv
    # conll: columns are numbered from 1, negative ones from the end
    comment: str = "#"  # a line between sentences that starts so is left out; "": none
    # chats: what a row looks like; auto: by its keys
    chat: ChatName = "auto"
    # datasets
    config_name: str | None = None
    split: str = "train"
    streaming: bool = True


# Findings of the audit that keep a run from starting (trainer/data/audit_kinds.py).
AuditKind = Literal[
    "nothing_learnt", "answer_cut", "end_missing", "double_begin", "words_lost", "answer_lost",
    "overlap", "duplicates", "contradictions", "empty_class", "single_example", "one_class",
    "unknown_label", "unknown_tokens", "beyond_vocabulary", "template_mismatch", "packing",
    "same_answers",
]  # fmt: skip


class AuditSettings(Section):
    """The audit runs once for prepared examples, and before anything is trained on them."""

    allow: tuple[AuditKind, ...]  # what may be there all the same
    near_copies: bool  # look for held-out rows that are nearly trained on: < 1 ms a row


class BackTranslation(Section):
    """Two encoder-decoders in folders of transformers': into another language, and back."""

    there: Annotated[str, Field(min_length=1)]
    back: Annotated[str, Field(min_length=1)]
    there_prefix: str = ""  # before each text, as T5 wants: "translate English to German: "
    back_prefix: str = ""
    beams: Annotated[int, Field(ge=1, le=64)] = 1  # 1: the likeliest token each time
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 256  # of a text, before and after


class AugmentSettings(Section):
    """More examples to train on, made of those there are. Shares are of a text's words."""

    copies: Annotated[int, Field(ge=0, le=100)]  # of each example; 0: none
    seed: Annotated[int, Field(ge=0)]
    fields: Annotated[tuple[Literal["text", "text_pair", "source"], ...], Field(min_length=1)]
    lexicon: str | None  # lines of a word, a tab, and what may stand for it, between commas
    synonyms: Annotated[float, Field(ge=0, le=1)]  # replaced, of the words that the lexicon has
    delete: Annotated[float, Field(ge=0, lt=1)]  # left out; one word always stays
    swap: Annotated[float, Field(ge=0, le=1)]  # change places with another word
    mask: Annotated[float, Field(ge=0, lt=1)]  # in runs of 1 to 5 words, each one mask_text
    # one copy more, said in another language and back; null: none
    back_translation: BackTranslation | None = None
    mask_text: str  # as the tokenizer spells it; a special token's name stays text
