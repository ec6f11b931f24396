"""The task section -> its encoding: which class stands behind which kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.tasks import (
    ChatTask,
    ClassifyTask,
    ExtractQaTask,
    PreferenceTask,
    RelationsTask,
    RewardTask,
    Seq2SeqTask,
    TagTask,
)
from trainer.data.encodings.base import Encoding
from trainer.data.encodings.chat import ChatEncoding
from trainer.data.encodings.classify import ClassifyEncoding
from trainer.data.encodings.extract_qa import QaEncoding
from trainer.data.encodings.preference import PreferenceEncoding
from trainer.data.encodings.relations import RelationEncoding
from trainer.data.encodings.seq2seq import EncoderDecoderEncoding, PromptedEncoding
from trainer.data.encodings.tag import TagEncoding
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import ChatTemplate
from trainer.planning import decoder_start_of


def encoding_of(config: Config, tokenizer: TaskTokenizer, *, labels: Sequence[str]) -> Encoding:
    """`labels`: the whole set; none yet where it is still to be found in the data.

    Raises: DataError for a tokenizer, or a chat template, that will not do.
    """
    task, row = config.task, config.data.sequence_length
    if isinstance(task, ClassifyTask):
        return ClassifyEncoding(task, tokenizer, labels=labels, row_tokens=row)
    if isinstance(task, TagTask):
        return TagEncoding(task, tokenizer, labels=labels, row_tokens=row)
    if isinstance(task, RelationsTask):
        if task.new_tokens:
            tokenizer.add(task.markers)
        return RelationEncoding(task, tokenizer, labels=labels, row_tokens=row)
    if isinstance(task, ExtractQaTask):
        return QaEncoding(task, tokenizer, row_tokens=row)
    if isinstance(task, Seq2SeqTask):
        start = decoder_start_of(config)
        if start is None:
            return PromptedEncoding(task, tokenizer, row_tokens=row)
        return EncoderDecoderEncoding(task, tokenizer, row_tokens=row, start_id=start)
    assert isinstance(config.data, ExamplesSection)
    folder = Path(config.data.tokenizer.path).expanduser()
    if isinstance(task, PreferenceTask | RewardTask):
        chats = ChatTemplate.find(folder, name=task.template, date=task.date)
        return PreferenceEncoding(task, tokenizer, template=chats, row_tokens=row)
    if isinstance(task, ChatTask):
        template = ChatTemplate.open(folder, name=task.template, date=task.date)
        return ChatEncoding(task, tokenizer, template=template, row_tokens=row)
    raise AssertionError(f"{task.kind} is not trained on examples")  # refused by the rules
