"""The task section -> its encoding: which class stands behind which kind."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.schema import Config
from trainer.config.sections.tasks import ClassifyTask
from trainer.data.encodings.base import Encoding
from trainer.data.encodings.classify import ClassifyEncoding
from trainer.data.task_tokenizer import TaskTokenizer


def encoding_of(config: Config, tokenizer: TaskTokenizer, *, labels: Sequence[str]) -> Encoding:
    """`labels`: the whole set; none yet where it is still to be found in the data."""
    task, row = config.task, config.data.sequence_length
    if isinstance(task, ClassifyTask):
        return ClassifyEncoding(task, tokenizer, labels=labels, row_tokens=row)
    raise AssertionError(f"{task.kind} is not trained on examples")  # refused by the rules
