"""Examples that are not fit to train on keep a run from starting, until they are or are allowed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import values
from tests.helpers.tokenizer_folders import bert_folder
from trainer.commands import data_audit, prepare
from trainer.config.explain import validate
from trainer.data.audit_stores import audit_stores, stored_examples
from trainer.data.example_store import ExampleStore
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import Exit
from trainer.records.prepared import find_prepared

TEXT = "the quick brown fox jumps over lazy dog and Ada wrote first notes in London"
WORDS = TEXT.split(" ")


class Data:
    """A CSV of texts in two classes, and the settings of a run on it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.csv = folder / "train.csv"
        self.tokenizer = bert_folder(folder / "tokenizer")
        self.settings = settings
        self.write(self.rows())

    def rows(self) -> list[list[str]]:
        return [[f"{WORDS[n % 15]} {WORDS[n // 15]} wrote", "ab"[n % 2]] for n in range(90)]

    def write(self, rows: list[list[str]]) -> None:
        with self.csv.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *rows])

    def config(self) -> dict[str, Any]:
        made = values(
            "task=classify", "model=encoder_debug", "data=examples",
            f"data.sources.examples.paths=[{self.csv}]", f"data.tokenizer.path={self.tokenizer}",
            f"data.store_root={self.folder / 'stores'}", "data.sequence_length=32",
        )  # fmt: skip
        made["data"]["audit"] |= self.settings
        return made

    def file(self) -> str:
        path = self.folder / "config.json"
        path.write_text(validate(self.config()).model_dump_json(), encoding="utf-8")
        return str(path)

    def prepared(self) -> int:
        return prepare.main([self.file(), "--result", str(self.folder / "result.json")])

    def found(self) -> Any:
        return find_prepared(validate(self.config()).model_dump(mode="json"))


def test_clean_examples_pass_and_are_not_asked_again(tmp_path: Path) -> None:
    data = Data(tmp_path)
    assert data.found() is None
    assert data.prepared() == Exit.DONE
    (store,) = data.found()
    written = (Path(store.path) / "audit.json").stat().st_mtime_ns
    assert data.prepared() == Exit.DONE
    assert (Path(store.path) / "audit.json").stat().st_mtime_ns == written


def test_bad_examples_are_refused_at_every_start_until_they_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(tmp_path)
    data.write([*data.rows(), *data.rows()[:20]])
    for _ in range(2):  # the store is there the second time, and still not to be trained on
        assert data.prepared() == Exit.STOP
        said = capsys.readouterr().err
        assert "repeat an earlier one: " in said
        assert f"{data.csv} rows 92, 9" in said
        assert "data.audit.allow=[" in said
        assert data.found() is None
    allowed = said.rpartition("allow=[")[2].rpartition("]")[0].split(",")
    data.settings = {"allow": allowed}
    assert data.found() is not None  # with what is known of them already
    assert data.prepared() == Exit.DONE
    data.settings = {}
    data.write(data.rows())
    assert data.prepared() == Exit.DONE


def test_the_command_says_all_and_shows_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Data(tmp_path)
    data.write([*data.rows(), ["the dog wrote first", "c"], ["the dog " * 99, "a"]])
    assert data_audit.main([data.file(), "--show", "2"]) == Exit.STOP
    said = capsys.readouterr().out
    assert "labels: a " in said
    assert f"refused (single_example): 1 labels have one example only: c in {data.csv}" in said
    assert f"warning (cut): 1 examples were longer than a row: {data.csv} row 93" in said
    assert said.count("--- ") == 2
    assert "train.csv row 3\n[CLS] quic ##k the wrot ##e [SEP]\n=> >>b<<" in said
    assert data_audit.main([data.file(), "--json"]) == Exit.STOP
    assert json.loads(capsys.readouterr().out)["facts"]["train"]["examples"] > 80


def test_rows_that_do_not_keep_their_examples_apart(tmp_path: Path) -> None:
    data = Data(tmp_path)
    assert data.prepared() == Exit.DONE
    folder = Path(data.found()[0].path)
    store, tokenizer = ExampleStore.open(folder), TaskTokenizer.open(folder)
    assert not audit_stores([store], tokenizer, name="x").refused()
    assert len(list(stored_examples(store, "train"))) == store.train.num_examples
    numbers, ends = store.train._row_index(store.train._rows.files)  # type: ignore[union-attr]
    store.train._index = numbers.copy(), ends.copy()
    store.train._index[0][0] = store.train._index[0][-1]
    (found,) = audit_stores([store], tokenizer, name="x").refused()
    assert found.kind == "packing"


def test_copies_are_trained_on_beside_their_rows_and_pass_the_audit(tmp_path: Path) -> None:
    data = Data(tmp_path)
    data.write([[f"{text} {TEXT}", label] for text, label in data.rows()])
    assert data.prepared() == Exit.DONE
    plain = data.found()[0]
    made = data.config()
    made["data"]["augment"] |= {"copies": 2, "swap": 1.0}
    path = tmp_path / "augmented.json"
    path.write_text(validate(made).model_dump_json(), encoding="utf-8")
    assert prepare.main([str(path), "--result", str(tmp_path / "r.json")]) == Exit.DONE
    (more,) = find_prepared(validate(made).model_dump(mode="json"))
    assert 1.5 * plain.train_examples < more.train_examples <= 3 * plain.train_examples
    store = ExampleStore.open(Path(more.path))
    rows = [example.row for example in stored_examples(store, "train")]
    assert rows == sorted(rows)
    held_out = {example.row for example in stored_examples(store, "held_out")}
    assert held_out
    assert not held_out & set(rows)
