"""How many bytes of text each token stands for, where a vocabulary says so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.tokenizer import TextTokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"


def bytes_of_tokens(folder: Path) -> NDArray[np.int64] | None:
    """By id, V long, of the tokenizer of a store; special tokens stand for none.

    Byte-level BPE (a letter a byte) and SentencePiece's (bytes of the letters, and spaces); None of
    any other, whose tokens do not add up to the text.
    """
    vendor = TextTokenizer.open(folder).tokenizer
    decoder: dict[str, Any] = json.loads(vendor.to_str())["decoder"] or {}
    kinds = {one.get("type") for one in (decoder, *decoder.get("decoders", []))}
    is_byte_level = "ByteLevel" in kinds
    if not is_byte_level and not kinds & {"Metaspace", "ByteFallback"}:
        return None
    special = {n for n, token in vendor.get_added_tokens_decoder().items() if token.special}
    vocabulary = vendor.get_vocab(with_added_tokens=True)
    added = vendor.get_added_tokens_decoder()
    found_V = np.zeros(1 + max(vocabulary.values()), dtype=np.int64)
    for text, number in vocabulary.items():
        if number in special:
            continue
        if number in added:  # as it is spelt
            found_V[number] = len(text.encode())
        elif is_byte_level:
            found_V[number] = len(text)
        else:
            found_V[number] = (
                1 if _BYTE.fullmatch(text) else len(text.replace(_SPACE, " ").encode())
            )
    return found_V
