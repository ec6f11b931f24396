"""Tokenizers: train a byte-level BPE, load a Hugging Face one, find its end of text, decode.

The one door to `tokenizers`; transformers' classes are never needed (they cost seconds).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from trainer.config.sections.data import PretrainedTokenizer, TrainedTokenizer
from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json, write_json
from trainer.records.store_lookup import tokenizer_files
from trainer.records.token_store import TOKENIZER

END_OF_TEXT = "<|endoftext|>"
# asked in this order when no tokenizer_config.json says what ends a text
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
CONFIG = "tokenizer_config.json"


class TextTokenizer:
    """A tokenizer with a known end of text; `tokenizer` is the vendor's object."""

    def __init__(self, tokenizer: Tokenizer, *, end_of_text_id: int) -> None:
        self.tokenizer = tokenizer
        self.end_of_text_id = end_of_text_id
        # A text that spells out "<|endoftext|>" must not become that token: as plain text it is
        # harmless, as a token it is a forged document end.
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @classmethod
    def open(cls, folder: Path) -> TextTokenizer:
        """The tokenizer of a store, of a tokenizer folder, or one tokenizer.json.

        Raises: DataError if it is missing, damaged, or names no end of text.
        """
        tokenizer, config = vendor_tokenizer(folder)
        return cls(tokenizer, end_of_text_id=_end_of_text_id(tokenizer, config, where=folder))

    @property
    def vocab_size(self) -> int:
        """One more than the highest id: what an embedding must hold."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that name added tokens; fast encoders disagree on them."""
        return tuple(t.content for t in self.tokenizer.get_added_tokens_decoder().values())

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def write(self, folder: Path) -> None:
        """tokenizer.json, and a tokenizer_config.json that transformers reads."""
        write_json(folder / TOKENIZER, json.loads(self.tokenizer.to_str()))
        end = self.tokenizer.id_to_token(self.end_of_text_id)
        write_json(
            folder / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        )


def vendor_tokenizer(folder: Path) -> tuple[Tokenizer, Path | None]:
    """The vendor's object of a tokenizer folder or file, and the tokenizer_config.json beside it.

    Raises: DataError if it is missing or damaged.
    """
    files = {p.name: p for p in tokenizer_files(str(folder))}
    file = files.get(TOKENIZER) or (folder if folder.is_file() else None)
    return _from_file(file) if file else _from_vocabulary(files), files.get(CONFIG)


def add_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """Texts that are one token each from now on, as they are spelled; how many were new."""
    added: int = tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return added


def tokenizer_digest(folder: Path) -> str:
    """sha256 of tokenizer.json: two stores can be mixed when theirs are equal."""
    return hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()


def trained(settings: TrainedTokenizer, texts: Iterable[str]) -> TextTokenizer:
    """A byte-level BPE as GPT-2's, trained on `texts`. The same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None  # it was asked for as a special token
    return TextTokenizer(tokenizer, end_of_text_id=end)


def pretrained(settings: PretrainedTokenizer) -> TextTokenizer:
    """Raises: as TextTokenizer.open."""
    return TextTokenizer.open(Path(settings.path).expanduser())


def streamed(tokenizer: TextTokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they arrive: never half a character."""
    stream = decoders.DecodeStream(skip_special_tokens=False)
    for token in ids:
        piece = stream.step(tokenizer.tokenizer, token)
        if piece:
            yield piece


def _from_file(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the vendor raises bare Exception
        raise DataError(f"{path} is not a Hugging Face tokenizer: {e}") from e


def _from_vocabulary(files: dict[str, Path]) -> Tokenizer:
    """GPT-2's older form. Source: transformers 5, convert_slow_tokenizer.py, GPT2Converter."""
    vocabulary, merges = files["vocab.json"], files["merges.txt"]
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as e:
        raise DataError(f"{vocabulary} and {merges.name} are not a BPE vocabulary: {e}") from e
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, normalized=False)])
    return tokenizer


def _end_of_text_id(tokenizer: Tokenizer, config: Path | None, *, where: Path) -> int:
    if (end := _named(config, "eos_token", tokenizer)) is not None:
        return end
    for name in KNOWN_ENDS:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    if (separator := _named(config, "sep_token", tokenizer)) is not None:
        return separator  # BERT ends a text with it
    raise DataError(
        f"{where}: this tokenizer names no end-of-text token (asked for eos_token in {CONFIG}, "
        f"then {', '.join(KNOWN_ENDS)}); add one to its {CONFIG}"
    )


def _named(config: Path | None, name: str, tokenizer: Tokenizer) -> int | None:
    """The id of what tokenizer_config.json calls `name`. Raises: DataError if it is unreadable."""
    if config is None:
        return None
    try:
        named: Any = read_untrusted_json(config).get(name)
    except (OSError, ValueError, AttributeError) as e:
        raise DataError(f"{config} cannot be read: {e}") from e
    text = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return None if found is None else int(found)
