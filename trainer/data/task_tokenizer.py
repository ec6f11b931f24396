"""A tokenizer as tasks need it: with its own special tokens, pairs, offsets and a length limit.

What a special token spells, in a text, is text: "[SEP]" of a user never ends a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.tokenizer import add_tokens, vendor_tokenizer
from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json, write_json
from trainer.records.token_store import TOKENIZER

_NAMES = (
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
    "bos_token",
    "eos_token",
    "unk_token",
)


@dataclass(frozen=True)
class Encoded:
    """Of T tokens. `offsets`: characters [begin, end) of the text a token stands for.

    `sequences`: 0 the text, 1 its pair, None a special token. `words`: number of the word of its
    text, where texts were given as words.
    """

    ids: list[int]
    segments: list[int]
    offsets: list[tuple[int, int]]
    sequences: list[int | None]
    words: list[int | None]
    was_cut: bool


class TaskTokenizer:
    """`specials`: ids by Hugging Face's names of them, as in {"cls_token": 101}."""

    def __init__(self, tokenizer: Any, *, specials: dict[str, int]) -> None:
        self._tokenizer = tokenizer
        self._length = 0
        self.has_new_tokens = False
        self.specials = dict(specials)
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def open(cls, folder: Path) -> TaskTokenizer:
        """Raises: DataError if it is missing or damaged."""
        tokenizer, config = vendor_tokenizer(folder)
        return cls(tokenizer, specials=_specials(tokenizer, config))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: what an embedding must hold."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return 1 + max(ids.values())

    def add(self, texts: Sequence[str]) -> None:
        """Make each of them one token wherever it stands in a text; those that are one stay so."""
        self.has_new_tokens |= add_tokens(self._tokenizer, texts) > 0

    @property
    def padding_id(self) -> int:
        """Never attended to and never a label, so that any id will do where none is named."""
        return self.specials.get("pad_token", self.specials.get("eos_token", 0))

    def special(self, name: str) -> int:
        """The id of `mask_token`, say. Raises: DataError if this tokenizer has none."""
        found = self.specials.get(name)
        if found is None:
            known = ", ".join(self.specials) or "none"
            raise DataError(
                f"the tokenizer has no {name}, which this task needs (it has {known}); name it in "
                "its tokenizer_config.json"
            )
        return found

    def encode(
        self,
        text: str | list[str],
        pair: str | list[str] | None = None,
        *,
        length: int = 0,
        special: bool = True,
    ) -> Encoded:
        """Texts, or lists of words; at most `length` tokens, cut where the text is longest."""
        if length != self._length:
            self._limit(length)
        words = isinstance(text, list)
        found = self._tokenizer.encode(
            text, pair, is_pretokenized=words, add_special_tokens=special
        )
        return _encoded(found)

    def encode_rendered(self, text: str) -> Encoded:
        """A text whose author is a chat template: special tokens in it are tokens. Never cut."""
        if self._length:
            self._limit(0)
        self._tokenizer.encode_special_tokens = False
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        finally:
            self._tokenizer.encode_special_tokens = True
        return _encoded(found)

    @property
    def special_texts(self) -> dict[str, int]:
        """What added tokens spell, and their ids: in a text of a user these are text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.content}

    def windows(self, text: str, pair: str, *, length: int, stride: int) -> list[Encoded]:
        """The text with as much of its pair as `length` tokens hold, until all of that was shown.

        Two windows share `stride` tokens of the pair. Offsets are those of the whole pair.
        """
        self._length = -1  # the next encode() sets its own limit
        self._tokenizer.enable_truncation(length, stride=stride, strategy="only_second")
        found = self._tokenizer.encode(text, pair)
        return [_encoded(window) for window in (found, *found.overflowing)]

    def write(self, folder: Path) -> None:
        """tokenizer.json, of a tokenizer that has new tokens, or was given in an older form."""
        self._limit(0)  # a limit would be written with it
        write_json(folder / TOKENIZER, json.loads(self._tokenizer.to_str()))

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def decode_plain(self, ids: Sequence[int]) -> str:
        """Without special tokens: what an answer says."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _limit(self, length: int) -> None:
        if length:
            self._tokenizer.enable_truncation(length, strategy="longest_first")
        else:
            self._tokenizer.no_truncation()
        self._length = length


def _encoded(found: Any) -> Encoded:
    return Encoded(
        ids=found.ids,
        segments=found.type_ids,
        offsets=found.offsets,
        sequences=found.sequence_ids,
        words=found.word_ids,
        was_cut=bool(found.overflowing),
    )


def _specials(tokenizer: Any, config: Path | None) -> dict[str, int]:
    if config is None:
        return {}
    try:
        named = read_untrusted_json(config)
        values = {name: named.get(name) for name in _NAMES}
    except (OSError, ValueError, AttributeError) as e:
        raise DataError(f"{config} cannot be read: {e}") from e
    found = {}
    for name, value in values.items():
        text = value.get("content") if isinstance(value, dict) else value
        number = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if number is not None:
            found[name] = int(number)
    return found
