"""Tokenizer folders for tests: small, made on the spot, with their families' special tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_TEXT = [
    "the quick brown fox jumps over the lazy dog and Ada wrote the first notes in London",
    "Peter Blackburn works for the European Union in Brussels since 1998, unhappily enough",
    "user assistant system hello how are you what is two plus two four thank you",
]


def bert_folder(folder: Path) -> Path:
    """WordPiece without case, [CLS] and [SEP] around, as BERT's; words are cut into pieces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: number for number, piece in enumerate([*specials, *_pieces()])}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _written(folder, tokenizer, {f"{name}_token": text for name, text in names.items()})


def _pieces() -> list[str]:
    """Letters, and the words of _TEXT in fours: a trained vocabulary differs from run to run."""
    words = re.findall(r"\w+|,", " ".join(_TEXT).lower())
    letters = {letter for word in words for letter in word}
    starts = {word[:4] for word in words}
    later = {word[begin : begin + 4] for word in words for begin in range(4, len(word), 4)}
    return sorted(letters | starts) + [f"##{piece}" for piece in sorted(letters | later)]


def gpt_folder(folder: Path, *, chat_template: str | None = None) -> Path:
    """Byte-level BPE with <s> before every text, </s>, and ChatML's two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
            ),
        ]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    if chat_template is not None:
        names["chat_template"] = chat_template
    return _written(folder, tokenizer, names)


def t5_folder(folder: Path) -> Path:
    """Byte-level BPE with </s> behind every text, <pad>, and T5's sentinels, the first one last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    sentinels = [f"<extra_id_{n}>" for n in reversed(range(20))]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in sentinels])
    return _written(folder, tokenizer, {"pad_token": "<pad>", "eos_token": "</s>"})


def with_more(folder: Path, *texts: str) -> Path:
    """The same tokenizer, with special tokens more."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _written(folder: Path, tokenizer: Tokenizer, config: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder
