"""Formats people have: what a file holds, under our names, in order, with file and row."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data import real_data
from tests.helpers.records import CHAT, CLASSIFY, QA, SEQ2SEQ, TAG, read, refused, said, wrote
from trainer.config.sections.examples import RecordsSource
from trainer.data.formats.rows import Wanted
from trainer.data.formats.table import records
from trainer.data.sources import Rejected

# --- columns -----------------------------------------------------------------------------------


def test_columns_are_found_by_their_names_and_the_finding_is_said(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"id": 1, "sentence": "good", "category": "yes"}])
    assert read(path, CLASSIFY)[0].fields == {"text": "good", "label": "yes"}
    expected = "jsonl: text <- sentence (detected), label <- category (detected)"
    assert said(path, CLASSIFY) == expected


def test_two_columns_that_could_be_meant_are_asked_about(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"question": "q", "prompt": "p", "answer": "a"}])
    message = refused(path, SEQ2SEQ)
    assert "'source' could be 'question' and 'prompt'" in message
    assert "name it: data.sources.NAME.columns.source=question" in message
    assert read(path, SEQ2SEQ, columns={"source": "prompt"})[0].fields["source"] == "p"


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"words": "x", "label": 1}])
    assert "has no column for 'text' (it has: words, label)" in refused(path, CLASSIFY)
    assert "has no column 'txt'" in refused(path, CLASSIFY, columns={"text": "txt"})


def test_columns_inside_of_columns_and_several_in_one(tmp_path: Path) -> None:
    path = wrote(
        tmp_path / "a.jsonl",
        [
            {
                "translation": {"en": "hi", "de": "hallo"},
                "s1": "one",
                "s2": "two",
                "t": "x",
                "b": "y",
            }
        ],
    )
    columns = {"source": "translation.en", "target": "translation.de"}
    assert read(path, SEQ2SEQ, columns=columns)[0].fields == {"source": "hi", "target": "hallo"}
    columns = {"source": ("t", "b"), "target": "s1", "references": ("s1", "s2")}
    found = read(path, SEQ2SEQ, columns=columns)[0].fields
    assert found == {"source": "x y", "target": "one", "references": ["one", "two"]}


def test_several_columns_of_yes_and_no_are_the_names_that_say_yes(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.csv", "text,rude,long\nfine,0,0\nbad,1,1\n")
    every = read(path, Wanted(("text", "labels")), columns={"labels": ("rude", "long")})
    assert [r.fields["labels"] for r in every] == [[], ["rude", "long"]]


def test_a_bad_row_is_skipped_and_counted_when_that_is_asked_for(tmp_path: Path) -> None:
    path = wrote(
        tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"text": "", "label": 1}, {"text": 3}]
    )
    rejected = Rejected()
    source = RecordsSource(paths=(path,), on_bad_line="skip")
    assert [r.row for r in records(source, rejected=rejected, wanted=CLASSIFY)] == [1]
    assert rejected.count == 2
    assert rejected.examples[0] == f"{path} row 2: 'text' is empty"
    assert refused(path, CLASSIFY).startswith(f"{path} row 2: 'text' is empty; mend it, or leave")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None, "label": 1}, "row 2: 'text' is null"),
        ({"text": 5, "label": 1}, "row 2: 'text' is int, not text"),
        ({"text": "  ", "label": 1}, "row 2: 'text' is empty"),
        ({"text": "\ud800", "label": 1}, "half a surrogate pair"),
        ({"text": "x", "label": None}, "row 2: 'label' is null"),
        ({"text": "x", "label": []}, "row 2: 'label' is list, not a name or a number"),
        ({"label": 1}, "row 2 has no column 'text'"),
        ([1], "row 2 is list, not an object"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path: Path, row: Any, message: str) -> None:
    path = wrote(tmp_path / "a.jsonl", [{"text": "fine", "label": 1}, row])
    assert message in refused(path, CLASSIFY)


# --- containers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.parquet"])
def test_the_same_rows_in_every_container(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"text {n} \u00fc", "label": n % 2} for n in range(2000)]
    path = tmp_path / name
    if ".parquet" in name:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        wrote(path, rows if "jsonl" in name else json.dumps(rows, indent=2))
    found = read(str(path), CLASSIFY)
    assert [r.fields for r in found] == rows
    assert [r.row for r in found] == list(range(1, 2001))
    assert found[0].place == f"{path} row 1"


def test_a_list_in_json_is_cut_where_it_breaks(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.json", '[{"text": "a", "label": 1}, {"text": "b" "label": 2}]')
    assert "is not the JSON it should be" in refused(path, CLASSIFY)
    path = wrote(tmp_path / "b.json", '[{"text": "a", "label": 1}')
    assert "it ends where ',' should be" in refused(path, CLASSIFY)
    path = wrote(tmp_path / "c.json", json.dumps([{"text": "x" * 300_000, "label": 1}]))
    assert "longer than max_row_bytes" in refused(path, CLASSIFY, max_row_bytes=1000)
    assert len(read(path, CLASSIFY)[0].fields["text"]) == 300_000


def test_csv_dialects(tmp_path: Path) -> None:
    rows = [["text", "label"], ['with "quotes", and\nlines', "a"], ["plain", "b"]]
    for name, mark in (("a.csv", ","), ("b.csv", ";"), ("c.csv.gz", ",")):
        lines = tmp_path / "lines"
        with lines.open("w", newline="") as stream:
            csv.writer(stream, delimiter=mark).writerows(rows)
        found = read(wrote(tmp_path / name, lines.read_bytes()), CLASSIFY)
        assert [list(r.fields.values()) for r in found] == rows[1:]
        assert [r.row for r in found] == [2, 4]  # the lines on which they start
    path = wrote(tmp_path / "d.tsv", 'text\tlabel\nsay "hi\ta\n')
    assert read(path, CLASSIFY)[0].fields["text"] == 'say "hi'


def test_csv_without_names_and_with_ragged_rows(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.csv", "3,a long title here,b\n4,another,c\n")
    assert "set header=false" in refused(path, CLASSIFY)
    columns = {"text": ("2", "3"), "label": "1"}
    assert "header=false" in refused(path, CLASSIFY, columns=columns)
    found = read(path, CLASSIFY, columns=columns, header=False)
    assert found[1].fields == {"text": "another c", "label": "4"}
    path = wrote(tmp_path / "b.csv", "text,label\na,1\nb,2,3\n")
    assert f"{path} row 3 has 3 cells, the first line has 2" in refused(path, CLASSIFY)
    path = wrote(tmp_path / "c.csv", 'text,label\na,1\n"b" x,2\n')
    assert f"{path} row 3 is not valid in its dialect" in refused(path, CLASSIFY)
    path = wrote(tmp_path / "d.csv", "text,text\na,1\n")
    assert "names the column 'text' twice" in refused(path, CLASSIFY)


def test_a_saved_data_set_gives_the_names_of_its_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")),
         "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"]))}
    )  # fmt: skip
    rows = {"tokens": [["Ada", "wrote"]], "ner_tags": [[1, 0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    found = read(str(tmp_path / "saved"), TAG)
    assert found[0].fields == {"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]}
    assert "cannot be loaded" in refused("no_such_owner/no_such_data", TAG)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.csv", b"  \n", "is empty"),
        ("a.jsonl", b"{}\0", "is a binary file (a zero byte at offset 2)"),
        ("a.jsonl", b'{"text": "\xff", "label": 1}', "is not UTF-8: byte 0xff at offset 10"),
        ("a.csv", b"text,label\na\xff,1\n", "is not UTF-8: byte 0xff at offset 12, in row 2; save"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a.conll", b"EU O\n\xff O\n", "byte 0xff at offset 5, in row 2; save the file as UTF-8"),
        ("a.json", b'[{"text": "\xff"}]', "is not UTF-8: byte 0xff"),
        ("a.jsonl", b"{oops\n", "row 1 is not JSON"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.txt", b"x", "its name does not say its format; set format to one of"),
        ("a.json", b'{"version": 1,\n "rows": 1}', "set format to json, jsonl or squad"),
    ],
)
def test_files_that_are_not_what_they_say(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    assert message in refused(wrote(tmp_path / name, content), CLASSIFY)


def test_a_gzip_cut_short_is_an_error_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a", "label": 1}\n' * 2000)[:-20])
    assert f"{path} cannot be read" in refused(str(path), CLASSIFY)


def test_files_of_two_formats_are_no_one_source(tmp_path: Path) -> None:
    wrote(tmp_path / "a.jsonl", [{"text": "a", "label": 1}])
    wrote(tmp_path / "b.csv", "text,label\na,1\n")
    assert "give files of one format" in refused(str(tmp_path / "*.*"), CLASSIFY)


# --- CoNLL -------------------------------------------------------------------------------------

CONLL = """-DOCSTART- -X- O O

# a comment line
EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN B-NP O
Peter NNP B-NP B-PER
"""


def test_conll_sentences_with_comments_and_chosen_columns(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.conll", CONLL)
    first, second = read(path, TAG)
    assert first.fields == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert second.fields == {"tokens": ["#", "Peter"], "tags": ["O", "B-PER"]}
    assert (first.row, second.row) == (4, 7)
    assert read(path, TAG, columns={"tags": "2"})[0].fields["tags"] == ["NNP", "VBZ"]
    assert read(path, TAG, columns={"tags": "-2"})[0].fields["tags"] == ["B-NP", "B-VP"]
    assert "has no column '9'" in refused(path, TAG, columns={"tags": "9"})


def test_a_ragged_conll_line_is_named(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a.conll", "EU B-ORG\nrejects\n\nfine O\n")
    message = refused(path, TAG)
    assert f"{path} row 2 is ragged: it has 1 columns, the lines before it have 2" in message
    assert [r.row for r in read(path, TAG, on_bad_line="skip")] == [4]


# --- SQuAD -------------------------------------------------------------------------------------


def squad(*asked: dict[str, Any], context: str = "Ada wrote notes.") -> dict[str, Any]:
    paragraphs = [{"context": context, "qas": list(asked)}]
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}


def test_squad_of_both_versions(tmp_path: Path) -> None:
    one = {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    none = {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}
    path = wrote(tmp_path / "a.json", squad(one, none))
    first, second = read(path, QA)
    assert first.fields["answers"] == [{"text": "Ada", "start": 0}]
    assert second.fields == {
        "id": "2",
        "question": "Why?",
        "context": "Ada wrote notes.",
        "answers": [],
    }
    assert second.row == 2
    assert said(path, QA).startswith("squad: ")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"text": "Eve", "answer_start": 0}], "is not in the context at 0; it is nowhere"),
        ([{"text": "wrote", "answer_start": 0}], "is not in the context at 0; it is at 4"),
        ([{"text": "Ada", "answer_start": "0"}], "no whole number"),
        ([{"text": "", "answer_start": 0}], "an answer has no text"),
        ({"text": ["Eve"]}, "the answer 'Eve' is not in the context"),
        ({"text": ["e"]}, "is in the context 2 times; its answer_start is needed"),
        (7, "is no list of texts"),
    ],
)
def test_answers_are_held_against_the_context(tmp_path: Path, answers: Any, message: str) -> None:
    path = wrote(tmp_path / "a.json", squad({"id": "1", "question": "Who?", "answers": answers}))
    assert message in refused(path, QA)
    assert f"{path} row 1" in refused(path, QA)


def test_a_number_that_is_read_in_two_pieces_is_one(tmp_path: Path) -> None:
    made = squad({"id": "1", "question": "Who?", "answers": []})
    for begin in range(65_525, 65_537):  # the first piece ends within the number, or beside it
        text = json.dumps({"note": "x" * (begin - 22), "version": 123456, "data": made["data"]})
        path = wrote(tmp_path / "a.json", text)
        assert len(read(path, QA, format="squad")) == 1


def test_answers_as_data_sets_have_them(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "context": "Ada wrote.",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }
    assert read(wrote(tmp_path / "a.jsonl", [row]), QA)[0].fields["answers"] == [
        {"text": "Ada", "start": 0}
    ]


# --- parallel texts ----------------------------------------------------------------------------


def test_parallel_files_go_line_by_line(tmp_path: Path) -> None:
    one = wrote(tmp_path / "a.en.gz", "one\u2028still one\ntwo\r\n")
    other = wrote(tmp_path / "a.de", "eins\nzwei\n")
    found = read(one, SEQ2SEQ, target_paths=(other,))
    assert [(r.fields["source"], r.fields["target"]) for r in found] == [
        ("one\u2028still one", "eins"),
        ("two", "zwei"),
    ]


def test_parallel_files_of_unequal_length_or_with_gaps(tmp_path: Path) -> None:
    one, other = wrote(tmp_path / "a.en", "one\n\n"), wrote(tmp_path / "a.de", "eins\nzwei\ndrei\n")
    message = refused(one, SEQ2SEQ, target_paths=(other,), on_bad_line="skip")
    assert "do not have equally many lines: a.en ends before line 3" in message
    wrote(tmp_path / "a.de", "eins\nzwei\n")
    assert f"{one} row 2: 'source' is empty" in refused(one, SEQ2SEQ, target_paths=(other,))
    assert "come in pairs" in refused(one, SEQ2SEQ, target_paths=(other, one))
    assert "need target_paths" in refused(one, SEQ2SEQ, format="parallel")


# --- real data ---------------------------------------------------------------------------------


def test_the_real_files_are_read_whole() -> None:
    news = str(real_data("ag_news/ag_news.csv"))
    columns = {"label": "1", "text": ("2", "3")}
    every = read(news, CLASSIFY, header=False, columns=columns)
    assert len(every) == 7600
    assert {r.fields["label"] for r in every} == {"1", "2", "3", "4"}
    flickr = real_data("multi30k")
    val = read(str(flickr / "val.en.gz"), SEQ2SEQ, target_paths=(str(flickr / "val.de.gz"),))
    assert len(val) == 1014
    talks = str(real_data("dialogsum/test.jsonl"))
    columns = {"target": "summary1", "references": ("summary1", "summary2", "summary3")}
    assert len(read(talks, SEQ2SEQ, columns=columns)[0].fields["references"]) == 3
    sums = read(str(real_data("gsm8k/test.jsonl")), CHAT)
    assert len(sums) == 1319
    assert [m["role"] for m in sums[0].fields["messages"]] == ["user", "assistant"]
