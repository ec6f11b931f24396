"""Data for tests: real corpora where somebody put them, a made-up one everywhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_PROJECT = Path(__file__).resolve().parents[2]
_TEXT = "the a night train long road carries quiet heavy wheels over old bridge and river"
_WORDS = _TEXT.split()


def real_data(name: str) -> Path:
    """A file or folder of the real test data, say `gsm8k/test.jsonl`; skips the test without it.

    The data stays outside the project because its licences differ: `../shared/data` from the
    project's root, or `$LONGHAUL_TEST_DATA`.
    """
    root = Path(os.environ.get("LONGHAUL_TEST_DATA") or _PROJECT.parent / "shared" / "data")
    path = root / name
    if not path.exists():
        pytest.skip(f"no test data {name!r} in {root}; set LONGHAUL_TEST_DATA to a folder with it")
    return path


def tiny_text_corpus(folder: Path, *, documents: int = 40) -> Path:
    """A file `corpus.jsonl` with a `text` per line: 1 to 60 words, some with other scripts.

    Pure: the same every time. Lengths differ so much that rows must be packed and cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    rows = (json.dumps({"text": _document(n)}, ensure_ascii=False) for n in range(documents))
    text = "\n".join(rows) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")  # a new time of change would mean a new token store
    return path


def _document(number: int) -> str:
    length = 1 + number * number * 7 % 60
    words = [_WORDS[(number * 5 + i * (3 + number % 7)) % len(_WORDS)] for i in range(length)]
    if number % 9 == 4:
        words.append("Gr\u00fc\u00dfe \u6771\u4eac \U0001f682")
    return " ".join(words) + "."
