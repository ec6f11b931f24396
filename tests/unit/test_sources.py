"""Sources yield documents in a fixed order; what is wrong with one is a sentence with its place."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.config.sections.data import (
    CustomSource,
    DatasetsSource,
    FilesSource,
    StdlibSource,
)
from trainer.data.sources import Rejected, custom, custom_digest, documents
from trainer.errors import DataError, Refused


def _files(*paths: Path | str, **settings: Any) -> FilesSource:
    given = {"kind": "files", "format": "text", "paths": tuple(map(str, paths))} | settings
    return FilesSource.model_validate(given)


def _read(source: Any, rejected: Rejected | None = None) -> list[str]:
    return list(documents(source, trust=(), rejected=rejected or Rejected()))


def test_the_standard_library_is_there_in_a_fixed_order() -> None:
    first, second = (_read(StdlibSource(kind="stdlib")) for _ in range(2))
    assert first == second
    assert len(first) > 200
    assert any("class JSONDecoder" in text for text in first)


def test_a_text_file_is_one_document_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n", encoding="utf-8")
    found = _read(_files(tmp_path / "c.txt", tmp_path / "*.txt"))
    assert found == ["text c\n", "text a\n", "text b\n"]


def test_paragraphs_are_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n\n \nthree\r\n\r\nfour")
    assert _read(_files(path, document="paragraph")) == ["one\ntwo\n", "three\r\n", "four"]


def test_gzipped_lines_read_as_plain_ones(tmp_path: Path) -> None:
    rows = [{"text": "eins"}, {"text": ""}, {"text": "zw\u00f6lf"}]
    raw = "".join(json.dumps(r) + "\n" for r in rows).encode() + b"\n"
    (tmp_path / "d.jsonl").write_bytes(raw)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(raw))
    for name in ("d.jsonl", "d.jsonl.gz"):
        assert _read(_files(tmp_path / name, format="jsonl")) == ["eins", "zw\u00f6lf"]


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    _parquet(tmp_path / "d.parquet", body=["one", "", "two"])
    source = _files(tmp_path / "d.parquet", format="parquet", text_key="body")
    assert _read(source) == ["one", "two"]


_BAD_TEXT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "holds nothing but white space"),
    "binary": (b"ab\0cd", r"is a binary file \(a zero byte at offset 2\)"),
    "not utf-8": (b"ok\nab\xffcd", "is not UTF-8: byte 0xff at offset 5"),
    "not utf-8 behind a mark": (b"\xef\xbb\xbfa\xff", "is not UTF-8: byte 0xff at offset 4"),
    "too long": (b"x" * 2000, "is longer than max_document_bytes=1,000"),
}
_BAD_LINES: dict[str, tuple[bytes, str]] = {
    "broken": (b'{"text": "a', r"line 2 is not JSON \("),
    "no field": (b'{"body": "a"}', r"line 2 has no field 'text' \(it has: body; set text_key\)"),
    "no object": (b"[1]", r"line 2 has no field 'text' \(it has: list;"),
    "number": (b'{"text": 3}', "line 2: the field 'text' is int, not text"),
    "surrogate": (b'{"text": "\\ud800"}', "line 2: the field 'text' holds half a surrogate"),
    "not utf-8": (b'{"text": "\xe4"}', "is not UTF-8: byte 0xe4 at offset 26"),
    "too long": (b'{"text": "%s"}' % (b"x" * 5000), "line 2 is longer than max_document_bytes"),
}


@pytest.mark.parametrize("name", _BAD_TEXT)
def test_a_bad_text_file_stops_or_is_skipped(tmp_path: Path, name: str) -> None:
    raw, message = _BAD_TEXT[name]
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt").write_text("good", encoding="utf-8")
    _stops_or_skips(_files(tmp_path / "*.txt", max_document_bytes=1000), "a.txt", message)


@pytest.mark.parametrize("name", _BAD_LINES)
def test_a_bad_line_stops_or_is_skipped(tmp_path: Path, name: str) -> None:
    raw, message = _BAD_LINES[name]
    good = b'{"text": "good"}\n'
    source = _files(tmp_path / "a.jsonl", format="jsonl", max_document_bytes=1000)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""   }\n' + raw + b"\n" + good)
    _stops_or_skips(source, "a.jsonl", message)


@pytest.mark.parametrize("value", [None, "x" * 2000])
def test_a_bad_parquet_row_stops_or_is_skipped(tmp_path: Path, value: str | None) -> None:
    _parquet(tmp_path / "d.parquet", text=[value, "good"])
    source = _files(tmp_path / "d.parquet", format="parquet", max_document_bytes=1000)
    _stops_or_skips(source, "d.parquet", "row 1")


def _stops_or_skips(source: FilesSource, name: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{message}.*on_bad_line=skip"):
        _read(source)
    rejected = Rejected()
    assert _read(source.model_copy(update={"on_bad_line": "skip"}), rejected) == ["good"]
    assert rejected.count == 1
    assert name in rejected.examples[0]


def test_a_line_of_100_mb_is_refused_without_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "good"}\n')
    source = _files(path, format="jsonl", on_bad_line="skip")
    rejected = Rejected()
    assert _read(source, rejected) == ["good"]
    assert "long.jsonl line 1 is longer than max_document_bytes=67,108,864" in rejected.examples[0]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("missing.txt", "missing.txt does not exist"),
        ("*.nothing", r"\*\.nothing matches no file"),
        ("", r"is a folder; name its files"),
    ],
)
def test_paths_that_name_no_file_are_refused(tmp_path: Path, paths: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(_files(tmp_path / paths))


def test_damaged_containers_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read"):
        _read(_files(tmp_path / "a.txt.gz"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        _read(_files(tmp_path / "a.parquet", format="parquet"))
    _parquet(tmp_path / "b.parquet", body=["x"])
    with pytest.raises(DataError, match=r"has no column 'text' \(it has: body; set text_key\)"):
        _read(_files(tmp_path / "b.parquet", format="parquet"))


def test_a_datasets_folder_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"body": ["one", "", "two"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "d"))
    rows.save_to_disk(str(tmp_path / "single"))

    def source(**settings: Any) -> DatasetsSource:
        given = {"kind": "datasets", "path": str(tmp_path / "d"), "text_key": "body"}
        return DatasetsSource.model_validate(given | settings)

    assert _read(source()) == ["one", "two"]
    assert _read(source(path=str(tmp_path / "single"))) == ["one", "two"]
    with pytest.raises(DataError, match=r"has no split 'test' \(it has: train\)"):
        _read(source(split="test"))
    with pytest.raises(DataError, match="has no column 'text'"):
        _read(source(text_key="text"))
    with pytest.raises(DataError, match=r"data set no/where cannot be loaded: .* save_to_disk"):
        _read(source(path="no/where"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    def make(body: str) -> str:
        (tmp_path / "my_corpus.py").write_text(body, encoding="utf-8")
        return "my_corpus:Corpus"

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    sys.modules.pop("my_corpus", None)


_CORPUS = """
class Corpus:
    def __init__(self, count):
        self.count = count
    def documents(self):
        for n in range(self.count):
            yield f"document {n}"
    def digest(self):
        return str(self.count)
"""


def _custom(target: str, **settings: Any) -> CustomSource:
    return CustomSource(kind="custom", target=target, settings=settings)


def test_a_class_of_the_users_package_is_a_source_once_trusted(
    package: Callable[[str], str],
) -> None:
    source = _custom(package(_CORPUS), count=2)
    found = documents(source, trust=["my_corpus"], rejected=Rejected())
    assert list(found) == ["document 0", "document 1"]
    with pytest.raises(Refused, match=r"add run\.trust=\[my_corpus\] if you trust its code"):
        custom(source, trust=[])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "my_corpus:Corpus cannot be made: AttributeError"),
        (_CORPUS, "cannot be made: TypeError: .*missing 1 required positional argument: 'count'"),
        ("class Corpus: pass", r"has no method documents\(\)"),
    ],
)
def test_a_class_that_will_not_do_is_named(
    package: Callable[[str], str], body: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        custom(_custom(package(body)), trust=["my_corpus"])


def test_a_class_that_yields_no_text_is_named(package: Callable[[str], str]) -> None:
    source = _custom(package(_CORPUS.replace('f"document {n}"', "n")), count=2)
    with pytest.raises(DataError, match="document 1 is int, not str"):
        list(documents(source, trust=["my_corpus"], rejected=Rejected()))


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("code", ["raise ValueError('bad row')", "json.loads('[1,')"])
def test_what_the_users_documents_raise_is_said_with_place_and_item(
    package: Callable[[str], str], at: int, code: str
) -> None:
    body = f"""
import json
class Corpus:
    def documents(self):
        for n in range({at - 1}):
            yield "text"
        self.helper()
        yield "never"
    def helper(self):
        {code}
    def digest(self):
        return ""
"""
    source = _custom(package(body))
    name = "ValueError: bad row" if code.startswith("raise") else "JSONDecodeError: Expecting value"
    with pytest.raises(DataError) as told:
        list(documents(source, trust=["my_corpus"], rejected=Rejected(source="mine")))
    first, empty, *below = str(told.value).splitlines()
    assert first.startswith(
        f"data source mine: my_corpus:Corpus.documents() failed at document {at}: {name}"
    )
    assert re.search(r" \(/.*/my_corpus\.py line 10, in helper\); correct that code$", first)
    assert not empty
    assert below[0] == "Traceback (most recent call last):"
    assert any(code in line for line in below)
    assert "sources.py" not in str(told.value)  # their code alone


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("documents", r"documents\(\) failed at document 1: .*my_corpus\.py line 4, in documents"),
        ("digest", r"digest\(\) failed: RuntimeError: no network \(.*line 4, in digest\)"),
        ("__init__", r"cannot be made: RuntimeError: no network \(.*line 4, in __init__\)"),
    ],
)
def test_each_method_of_the_users_class_may_fail(
    package: Callable[[str], str], method: str, message: str
) -> None:
    others = "".join(
        f"    def {name}(self):\n        return []\n"
        for name in ("documents", "digest")
        if name != method
    )
    head = f"\nclass Corpus:\n    def {method}(self):\n        raise RuntimeError('no network')\n"
    source = _custom(package(head + others))

    def ask() -> None:
        list(documents(source, trust=["my_corpus"], rejected=Rejected(source="mine")))
        custom_digest(source, trust=["my_corpus"], name="mine")

    with pytest.raises(DataError, match=message):
        ask()


def test_documents_that_are_no_list_of_anything_are_named(package: Callable[[str], str]) -> None:
    body = "class Corpus:\n    documents = digest = lambda self: None\n"
    source = _custom(package(body))
    with pytest.raises(DataError, match=r"failed at document 1: TypeError: 'NoneType' object is"):
        list(documents(source, trust=["my_corpus"], rejected=Rejected()))
    with pytest.raises(DataError, match=r"digest\(\) is NoneType, not str"):
        custom_digest(source, trust=["my_corpus"], name="mine")


def test_what_the_reader_of_documents_raises_is_not_the_users_fault(
    package: Callable[[str], str],
) -> None:
    found = documents(_custom(package(_CORPUS), count=2), trust=["my_corpus"], rejected=Rejected())
    next(found)
    assert isinstance(found, Generator)
    with pytest.raises(OSError, match="mine"):
        found.throw(OSError("mine"))


def _parquet(path: Path, **columns: list[str | None]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
