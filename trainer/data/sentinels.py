"""The sentinels of a tokenizer: tokens that stand for what was cut out of a text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.data.tokenizer import TextTokenizer
from trainer.errors import DataError

_NAME = "<extra_id_{}>"  # T5's, and of those that follow it


def sentinels_and_end(folder: Path) -> tuple[tuple[int, ...], int]:
    """(ids in the order of their use, the token that ends a text) of a store's tokenizer.

    Raises: DataError if it has none.
    """
    tokenizer = TextTokenizer.open(folder)
    vocabulary: Mapping[str, int] = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    found: list[int] = []
    while (name := _NAME.format(len(found))) in vocabulary:
        found.append(vocabulary[name])
    if not found:
        raise DataError(
            f"the tokenizer has no sentinels ({_NAME.format(0)}, {_NAME.format(1)}, ...), which "
            "span_denoising needs; take T5's, or add them, as in data.tokenizer.path=FOLDER"
        )
    return tuple(found), tokenizer.end_of_text_id
