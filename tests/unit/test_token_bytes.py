"""Bytes of tokens against the bytes of the texts that they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.helpers.tokenizer_folders import bert_folder, gpt_folder
from trainer.data.token_bytes import bytes_of_tokens
from trainer.data.tokenizer import TextTokenizer

TEXTS = ("the engine found a fault", "Gr\u00fc\u00dfe  an\tBerlin\n", "\u65e5\u672c \U0001f642!")


def _sentencepiece(folder: Path) -> Path:
    """BPE with byte fallback, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>", *alphabet], show_progress=False
    )
    tokenizer.train_from_iterator([TEXTS[0]] * 3, trainer)
    folder.mkdir()
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [one for one in raw["added_tokens"] if "<0x" not in one["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return folder


@pytest.mark.parametrize("made", [gpt_folder, _sentencepiece])
def test_tokens_of_a_text_add_up_to_its_bytes(made: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = made(tmp_path / "tokenizer")
    found, tokenizer = bytes_of_tokens(folder), TextTokenizer.open(folder)
    assert found is not None
    assert found[tokenizer.end_of_text_id] == 0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert found[ids].sum() == len(text.encode())


def test_a_vocabulary_that_loses_spaces_says_nothing(tmp_path: Path) -> None:
    assert bytes_of_tokens(bert_folder(tmp_path / "tokenizer")) is None
