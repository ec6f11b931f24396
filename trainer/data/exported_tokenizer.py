"""The tokenizer of a run's prepared data, as it goes beside exported weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.config.sections.example_data import ExamplesSection
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.tokenizer import TextTokenizer
from trainer.plan import RunPlan
from trainer.records.example_lookup import all_tokenizer_files


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that was given, with all that lay beside it; it is written as it was."""

    folder: Path
    end_of_text_id: int | None = None

    def write(self, folder: Path) -> None:
        for file in all_tokenizer_files(str(self.folder)):
            shutil.copy(file, folder / file.name)


def tokenizer_of(plan: RunPlan) -> TextTokenizer | TokenizerFiles:
    """Raises: DataError if the store's tokenizer cannot be read."""
    folder = Path(plan.stores[0].path)
    if isinstance(plan.config.data, ExamplesSection):
        if plan.decoder_start_id is None:
            return TokenizerFiles(folder)
        return TokenizerFiles(folder, TaskTokenizer.open(folder).special("eos_token"))
    return TextTokenizer.open(folder)
