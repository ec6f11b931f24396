"""Records for tests: files of every format written, read, and refused with one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config.sections.examples import RecordsSource
from trainer.data.formats.rows import ANY, Wanted
from trainer.data.formats.table import found, records
from trainer.data.sources import Rejected
from trainer.errors import DataError, Exit
from trainer.records.record import Record

CLASSIFY = Wanted(("text", "label"), ("text_pair",))
TAG = Wanted(("tokens", "tags"))
QA = Wanted(("question", "context", "answers"), ("id",))
SEQ2SEQ = Wanted(("source", "target"), ("references",))
CHAT = Wanted(("messages",), ("tools",))
PAIRS = Wanted(("chosen", "rejected"), ("prompt",))


def wrote(path: Path, content: str | bytes | list[Any] | dict[str, Any]) -> str:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    if isinstance(content, dict):
        content = json.dumps(content)
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def read(path: str | tuple[str, ...], wanted: Wanted = ANY, **settings: Any) -> list[Record]:
    paths = (path,) if isinstance(path, str) else path
    return list(records(RecordsSource(paths=paths, **settings), rejected=Rejected(), wanted=wanted))


def said(path: str, wanted: Wanted, **settings: Any) -> str:
    return found(RecordsSource(paths=(path,), **settings), wanted=wanted).said()


def refused(path: str, wanted: Wanted = ANY, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, wanted, **settings)
    assert caught.value.exit_code is Exit.STOP
    assert "\n" not in str(caught.value)
    return str(caught.value)
