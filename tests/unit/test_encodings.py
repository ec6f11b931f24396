"""Encodings of tags, relations, answers and targets: what the model sees is what the row says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.tokenizer_folders import bert_folder, gpt_folder
from trainer.batch import IGNORED
from trainer.config.sections.encodings import (
    QaSettings,
    RelationSettings,
    Seq2SeqSettings,
    TagSettings,
)
from trainer.config.sections.tasks import ClassifyTask
from trainer.data.encodings.classify import ClassifyEncoding
from trainer.data.encodings.example import Example
from trainer.data.encodings.extract_qa import NOWHERE, QaEncoding
from trainer.data.encodings.relations import RelationEncoding
from trainer.data.encodings.seq2seq import EncoderDecoderEncoding, PromptedEncoding
from trainer.data.encodings.tag import TagEncoding
from trainer.data.encodings.tag_schemes import Given, Scheme, spans_of, tags_of
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import DataError
from trainer.records.record import Record


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer.open(bert_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer.open(gpt_folder(tmp_path_factory.mktemp("gpt")))


def record(**fields: Any) -> Record:
    return Record(fields, "data.jsonl", 7)


def refused(encoding: Any, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        encoding.encode(record(**fields))
    assert str(caught.value).startswith("data.jsonl row 7")
    return str(caught.value)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("much", "the label 'much' is no number"),
        (float("inf"), "the label inf is no number"),
        (1e39, "the label 1e+39 is more than a 32-bit number holds"),  # it would be stored as inf
        ("-4e38", "the label '-4e38' is more than a 32-bit number holds"),
    ],
)
def test_a_label_that_cannot_be_predicted_is_named(
    bert: TaskTokenizer, label: Any, message: str
) -> None:
    task = ClassifyTask(kind="classify", answers="regression")
    encoding = ClassifyEncoding(task, bert, labels=(), row_tokens=32)
    assert message in refused(encoding, text="the dog", label=label)
    [example] = encoding.encode(record(text="the dog", label="3e38"))
    assert all(np.isfinite(column).all() for column in example.arrays.values())


# --- tags --------------------------------------------------------------------------------------


def tags(given: Given = "bio", scheme: Any = "same") -> TagSettings:
    return TagSettings(tags=given, scheme=scheme)


def test_each_word_has_its_tag_on_its_first_piece_and_none_on_the_others(
    bert: TaskTokenizer,
) -> None:
    encoding = TagEncoding(tags(), bert, labels=("B-PER", "I-PER", "O"), row_tokens=64)
    words = ["Peter", "Blackburn", "unhappily", "works"]
    (found,) = encoding.encode(record(tokens=words, tags=["B-PER", "I-PER", "O", "O"]))
    labels, ids = found.arrays["labels"], found.arrays["inputs"]
    assert len(labels) == len(ids) > len(words) + 2  # some words have several pieces
    first = [i for i, label in enumerate(labels) if label != IGNORED]
    assert labels[first].tolist() == [0, 1, 2, 2]
    pieces = [bert.decode(part.tolist()) for part in _cut(ids[1:-1], [f - 1 for f in first])]
    assert [p.replace(" ##", "").replace("##", "") for p in pieces] == [w.lower() for w in words]
    assert found.notes == {}


def _cut(ids: Any, starts: list[int]) -> list[Any]:
    return [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def test_words_beyond_the_row_and_words_of_nothing_are_noted(bert: TaskTokenizer) -> None:
    encoding = TagEncoding(tags(), bert, labels=("O",), row_tokens=8)
    (found,) = encoding.encode(record(tokens=["the"] * 20, tags=["O"] * 20))
    assert found.was_cut
    assert found.notes == {"words_cut": 14}
    (found,) = encoding.encode(record(tokens=["the", "\u200b", "dog"], tags=["O"] * 3))
    assert found.notes == {"words_lost": 1}
    assert (found.arrays["labels"] != IGNORED).sum() == 2


@pytest.mark.parametrize(
    ("given", "scheme", "before", "after"),
    [
        ("iob1", "bio", ["I-A", "I-A", "B-A", "I-B"], ["B-A", "I-A", "B-A", "B-B"]),
        ("bio", "bioes", ["B-A", "I-A", "B-B", "O"], ["B-A", "E-A", "S-B", "O"]),
        ("bioes", "bio", ["S-A", "B-B", "I-B", "E-B"], ["B-A", "B-B", "I-B", "I-B"]),
        ("bioes", "bioes", ["U-A", "B-B", "L-B"], ["S-A", "B-B", "E-B"]),
    ],
)
def test_schemes_turn_into_each_other(
    given: Given, scheme: Scheme, before: list[str], after: list[str]
) -> None:
    assert tags_of(spans_of(before, given, where="x"), len(before), scheme) == after


@pytest.mark.parametrize(
    ("given", "bad", "message"),
    [
        ("bio", ["O", "I-A"], "token 2: the tag 'I-A' after 'O' cannot stand there: no A is open"),
        ("bio", ["B-A", "I-B"], "no B is open"),
        ("bio", ["X-A"], "the tag 'X-A' is none of bio"),
        ("bio", ["B"], "the tag 'B' is none of bio"),
        ("bioes", ["B-A", "O"], "an entity is still open"),
        ("bioes", ["B-A"], "ends inside of an entity"),
        ("bioes", ["E-A"], "no A is open"),
        ("bio", ["O", "I-A"], "(task.tags=iob1 lets I- begin); correct it"),
        ("bio", ["O", "7"], "the tag '7' is a number; bio needs the names, as in B-PER"),
    ],
)
def test_tags_that_cannot_follow_each_other(
    bert: TaskTokenizer, given: Given, bad: list[str], message: str
) -> None:
    encoding = TagEncoding(tags(given), bert, labels=("O",), row_tokens=64)
    assert message in refused(encoding, tokens=["the"] * len(bad), tags=bad)


def test_a_tag_outside_of_the_declared_set_is_named(bert: TaskTokenizer) -> None:
    encoding = TagEncoding(tags(), bert, labels=("O", "B-PER"), row_tokens=64)
    message = refused(encoding, tokens=["the"], tags=["B-PRE"])
    assert "the label 'B-PRE' is none of the 2" in message
    assert "did you mean 'B-PER'?" in message


# --- relations ---------------------------------------------------------------------------------

MARKERS = RelationSettings(markers=("@", "@", "#", "#"))


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "Ada wrote notes", "head": {"start": 0, "end": 3}, "tail": [10, 15]},
        {"tokens": ["Ada", "wrote", "notes"], "head": [0, 1], "tail": {"start": 2, "end": 3}},
        {"text": "<e1>Ada</e1> wrote <e2>notes</e2>"},
        {"text": "<e1> Ada </e1>wrote<e2> notes</e2>"},
    ],
)
def test_entities_stand_between_their_markers(gpt: TaskTokenizer, fields: Any) -> None:
    encoding = RelationEncoding(MARKERS, gpt, labels=("author", "none"), row_tokens=64)
    (found,) = encoding.encode(record(label="author", **fields))
    text = gpt.decode(found.arrays["inputs"].tolist())
    assert text.removeprefix("<s>").split() == ["@", "Ada", "@", "wrote", "#", "notes", "#"]
    head, tail = found.arrays["entities"].tolist()
    ids = found.arrays["inputs"].tolist()
    assert gpt.decode([ids[head]]).strip() == "@"
    assert gpt.decode([ids[tail]]).strip() == "#"
    assert found.arrays["classes"].tolist() == [0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Ada wrote", "head": [0, 3], "tail": [2, 5]}, "the head and the tail overlap"),
        ({"text": "Ada wrote", "head": [0, 30], "tail": [4, 5]}, "'head' [0, 30) is empty or not"),
        ({"text": "Ada wrote", "head": [3, 3], "tail": [4, 5]}, "'head' [3, 3) is empty"),
        ({"text": "Ada wrote", "head": [0, 3], "tail": [4, 50]}, "within the 9 characters that"),
        ({"tokens": ["Ada", "wrote"], "head": [0, 1], "tail": [1, 3]}, "within the 2 tokens that"),
        ({"text": "Ada wrote", "head": "Ada", "tail": [4, 5]}, "'head' is no start and end"),
        ({"text": "Ada wrote"}, "has neither head and tail, nor <e1>"),
        ({"text": "<e1></e1> <e2>x</e2>"}, "'head' marks nothing"),
        ({"head": [0, 1], "tail": [1, 2]}, "neither text nor tokens"),
        ({"text": "the " * 40 + "end dog", "head": [160, 163], "tail": [164, 167]},
         "an entity stands beyond the 32 tokens of a row"),
    ],
)  # fmt: skip
def test_relations_whose_places_are_wrong(gpt: TaskTokenizer, fields: Any, message: str) -> None:
    encoding = RelationEncoding(MARKERS, gpt, labels=("a",), row_tokens=32)
    assert message in refused(encoding, label="a", **fields)


# --- extractive answers ------------------------------------------------------------------------

CONTEXT = "the quick brown fox jumps over the lazy dog and Ada wrote the first notes in London"


def answered(text: str) -> list[dict[str, Any]]:
    return [{"text": text, "start": CONTEXT.index(text)}]


def text_at(found: Example) -> str:
    first, last = found.arrays["spans"].tolist()
    begin, end = found.arrays["begins"][first], found.arrays["ends"][last]
    return str(found.text["context"][begin:end])


@pytest.mark.parametrize("answer", ["the quick", "Ada wrote", "London", "jumps over the lazy"])
@pytest.mark.parametrize("row_tokens", [24, 64])
def test_an_answer_is_the_same_text_again_in_every_window_that_holds_it(
    bert: TaskTokenizer, answer: str, row_tokens: int
) -> None:
    encoding = QaEncoding(QaSettings(stride=8), bert, row_tokens=row_tokens)
    fields = {"question": "what?", "context": CONTEXT, "answers": answered(answer), "id": "q1"}
    every = encoding.encode(record(**fields))
    assert all(len(e.arrays["inputs"]) <= row_tokens for e in every)
    assert (len(every) > 1) == (row_tokens == 24)
    holding = [e for e in every if tuple(e.arrays["spans"]) != NOWHERE]
    assert holding
    assert {text_at(e) for e in holding} == {answer}
    assert [e.notes for e in every] == [{}] * len(every)  # some window holds it
    shown = {i for e in every for b, n in _ranges(e) for i in range(b, n)}
    assert shown >= {i for i, c in enumerate(CONTEXT) if c != " "}  # no part of it is left out
    said = {"id": "q1", "context": CONTEXT, "answers": [answer]}
    where = {"record": "data.jsonl row 7", "windows": len(every)}
    assert [e.text for e in every] == [
        said | where | {"window": number} for number in range(len(every))
    ]


def _ranges(example: Example) -> list[tuple[int, int]]:
    pairs = zip(example.arrays["begins"].tolist(), example.arrays["ends"].tolist(), strict=True)
    return [(b, e) for b, e in pairs if b >= 0]


def test_an_answer_ends_before_the_comma(bert: TaskTokenizer) -> None:
    encoding = QaEncoding(QaSettings(stride=8), bert, row_tokens=64)
    context = "the fox,the dog,the end"
    fields = {"context": context, "answers": [{"text": "the dog", "start": 8}]}
    (found,) = encoding.encode(record(question="who?", **fields))
    assert text_at(found) == "the dog"


def test_no_answer_and_answers_that_no_window_holds(bert: TaskTokenizer) -> None:
    encoding = QaEncoding(QaSettings(stride=2), bert, row_tokens=20)
    fields = {"question": "what?", "context": CONTEXT}
    none = encoding.encode(record(**fields, answers=[]))
    assert {tuple(e.arrays["spans"]) for e in none} == {NOWHERE}
    assert all(e.notes == {} for e in none)
    lost = encoding.encode(record(**fields, answers=answered(CONTEXT)))
    assert [e.notes for e in lost] == [{"answer_lost": 1}] + [{}] * (len(lost) - 1)
    half = encoding.encode(record(**fields, answers=[{"text": "Londo", "start": 77}]))
    assert any("answer_inexact" in e.notes for e in half) or text_at(half[-1]) == "Londo"


def test_a_question_without_an_answer_is_refused_where_every_question_has_one(
    bert: TaskTokenizer,
) -> None:
    encoding = QaEncoding(QaSettings(stride=8, no_answer=False), bert, row_tokens=64)
    fields = {"question": "what?", "context": CONTEXT}
    message = refused(encoding, **fields, answers=[])
    assert "has no answer, and task.no_answer=false" in message
    assert encoding.encode(record(**fields, answers=answered("London")))


def test_a_question_that_leaves_no_room_is_named(bert: TaskTokenizer) -> None:
    encoding = QaEncoding(QaSettings(stride=8), bert, row_tokens=20)
    fields = {"question": "the dog " * 30, "context": CONTEXT, "answers": answered("Ada")}
    assert "raise data.sequence_length, or lower task.stride" in refused(encoding, **fields)


# --- targets -----------------------------------------------------------------------------------

SHORT = Seq2SeqSettings(prompt="say: {source} ->", target_tokens=30)


def test_a_decoder_learns_the_target_and_its_end_alone(gpt: TaskTokenizer) -> None:
    encoding = PromptedEncoding(SHORT, gpt, row_tokens=64)
    (found,) = encoding.encode(record(source="the dog", target=" Ada wrote"))
    inputs, labels = found.arrays["inputs"].tolist(), found.arrays["labels"].tolist()
    learnt = [label for label in labels if label != IGNORED]
    assert gpt.decode(learnt) == " Ada wrote</s>"
    first = labels.index(learnt[0])
    assert gpt.decode(inputs[: first + 1]) == "<s>say: the dog ->"
    assert inputs[first + 1 :] == learnt[:-1]  # each says the next
    assert found.notes == {}


def test_a_source_that_is_too_long_is_cut_and_the_target_is_not(gpt: TaskTokenizer) -> None:
    encoding = PromptedEncoding(SHORT, gpt, row_tokens=24)
    (found,) = encoding.encode(record(source="the lazy dog " * 20, target=" Ada"))
    labels = found.arrays["labels"].tolist()
    assert len(labels) == 24
    assert gpt.decode([label for label in labels if label != IGNORED]) == " Ada</s>"
    assert " ->" in gpt.decode(found.arrays["inputs"].tolist())
    assert set(found.notes) == {"source_cut"}
    brief = PromptedEncoding(SHORT.model_copy(update={"target_tokens": 2}), gpt, row_tokens=64)
    (found,) = brief.encode(record(source="x", target=" Ada wrote the"))
    assert found.notes == {"answer_cut": 2}
    assert found.arrays["labels"][-1] != 1  # its end is gone
    assert "lower task.target_tokens" in refused(
        PromptedEncoding(SHORT, gpt, row_tokens=10), source="x", target="lazy " * 30
    )


def test_an_encoder_decoder_begins_with_its_start_and_ends_with_the_end(gpt: TaskTokenizer) -> None:
    settings = Seq2SeqSettings(prompt="{source}", target_tokens=8)
    encoding = EncoderDecoderEncoding(settings, gpt, row_tokens=16, start_id=2)
    (found,) = encoding.encode(record(source="the dog", target="Ada"))
    labels = found.arrays["labels"].tolist()
    assert labels[-1] == 1
    assert found.arrays["decoder_inputs"].tolist() == [2, *labels[:-1]]
    assert found.text["references"] == ["Ada"]
    (found,) = encoding.encode(record(source="the dog " * 30, target="the lazy dog " * 9))
    assert set(found.notes) == {"answer_cut", "source_cut"}
    assert (len(found.arrays["inputs"]), len(found.arrays["labels"])) == (16, 8)
