"""The label audit: planted corruptions are refused with their rows, clean data passes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.helpers.chat_templates import CHATML
from tests.helpers.tokenizer_folders import bert_folder, gpt_folder
from trainer.config.sections.encodings import (
    ChatSettings,
    PreferenceSettings,
    QaSettings,
    Seq2SeqSettings,
    TagSettings,
)
from trainer.config.sections.examples import AuditKind
from trainer.config.sections.tasks import ClassifyTask
from trainer.data.audit import Audit, Subject
from trainer.data.audit_copies import NearCopies
from trainer.data.audit_kinds import KINDS
from trainer.data.audit_show import shown
from trainer.data.audit_template import template_findings
from trainer.data.audit_text import as_text
from trainer.data.encodings.base import Encoding
from trainer.data.encodings.chat import ChatEncoding, ends_of_turns
from trainer.data.encodings.classify import ClassifyEncoding
from trainer.data.encodings.example import NOTES, Example, bits_of, notes_of
from trainer.data.encodings.extract_qa import QaEncoding
from trainer.data.encodings.preference import PreferenceEncoding
from trainer.data.encodings.seq2seq import EncoderDecoderEncoding, PromptedEncoding
from trainer.data.encodings.tag import TagEncoding
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.template import BUILT_IN, ChatTemplate
from trainer.errors import DataError
from trainer.records.audit import AuditReport, is_fit, read_audit, write_audit
from trainer.records.record import Record

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TEXT = "the quick brown fox jumps over lazy dog and Ada wrote first notes in London"
WORDS = TEXT.split(" ")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer.open(bert_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer.open(gpt_folder(tmp_path_factory.mktemp("gpt")))


def text(number: int) -> str:
    """Ten words; different for every number."""
    return " ".join(WORDS[number // 15**i % 15] for i in range(4)) + " the dog wrote the notes it"


def audited(
    encoding: Encoding,
    tokenizer: TaskTokenizer,
    train: Iterable[dict[str, Any]],
    held_out: Iterable[dict[str, Any]] = (),
    labels: tuple[str, ...] = (),
    change: Any = lambda example: example,
) -> AuditReport:
    subject = Subject(
        name="x",
        terms=encoding.terms,
        labels=labels,
        vocab_size=tokenizer.vocab_size,
        begin_id=tokenizer.specials.get("bos_token", tokenizer.specials.get("cls_token")),
        end_ids=frozenset(ends_of_turns(tokenizer)),
        unknown_id=tokenizer.specials.get("unk_token"),
    )
    audit = Audit(subject)
    for row, fields in enumerate(train, 1):
        for example in encoding.encode(Record(fields, "train.jsonl", row)):
            audit.add("train", change(example))
    for row, fields in enumerate(held_out, 1):
        for example in encoding.encode(Record(fields, "test.jsonl", row)):
            audit.add("held_out", example)
    return audit.report()


def refusals(report: AuditReport) -> dict[str, tuple[str, ...]]:
    return {f.kind: f.places for f in report.refused()}


def rows(*numbers: int, file: str = "train.jsonl") -> tuple[str, ...]:
    return tuple(f"{file} row {number}" for number in numbers)


# --- each kind of task, clean and corrupted ----------------------------------------------------


def classify(bert: TaskTokenizer, labels: tuple[str, ...] = ("a", "b")) -> ClassifyEncoding:
    task = ClassifyTask(kind="classify", answers="single")
    return ClassifyEncoding(task, bert, labels=labels, row_tokens=64)


def texts(count: int, begin: int = 0) -> list[dict[str, Any]]:
    return [{"text": text(n), "label": "ab"[n % 2]} for n in range(begin, begin + count)]


def test_clean_classes_pass(bert: TaskTokenizer) -> None:
    labels = ("a", "b")
    report = audited(classify(bert), bert, texts(40), texts(10, begin=900), labels)
    assert refusals(report) == {}
    report.check()
    assert report.facts["train"]["labels"] == {"a": 20, "b": 20}
    assert as_text(report, allow=()).endswith("fit to train on")


def test_copies_of_rows(bert: TaskTokenizer) -> None:
    train = texts(40)
    train[7] = train[30] = train[3]
    assert refusals(audited(classify(bert), bert, train, labels=("a", "b"))) == {
        "duplicates": rows(8, 31)
    }
    many = texts(400)
    many[7] = many[3]  # one in four hundred happens
    report = audited(classify(bert), bert, many, labels=("a", "b"))
    assert [(f.kind, f.severity) for f in report.findings] == [("duplicates", "warn")]


def test_rows_that_contradict_each_other(bert: TaskTokenizer) -> None:
    train = texts(40)
    train[7] = train[4] | {"label": "b"}
    report = audited(classify(bert), bert, train, labels=("a", "b"))
    assert refusals(report) == {"contradictions": rows(8)}


def test_held_out_rows_that_are_trained_on(bert: TaskTokenizer) -> None:
    held_out = [*texts(3, begin=900), texts(40)[11], texts(2, begin=950)[0]]
    report = audited(classify(bert), bert, texts(40), held_out, ("a", "b"))
    assert refusals(report) == {"overlap": rows(4, file="test.jsonl")}
    assert "same_input" not in [f.kind for f in report.findings]  # said once
    held_out[3] = held_out[3] | {"label": "a"}
    report = audited(classify(bert), bert, texts(40), held_out, ("a", "b"))
    assert refusals(report) == {}
    assert "same_input" in [f.kind for f in report.findings]


def test_held_out_rows_that_are_nearly_trained_on(bert: TaskTokenizer) -> None:
    long = [" ".join(text(n + i * 77) for i in range(6)) for n in range(40)]
    task = ClassifyTask(kind="classify", answers="single")
    encoding = ClassifyEncoding(task, bert, labels=("a",), row_tokens=512)
    train = [{"text": t, "label": "a"} for t in long]
    near = long[11].replace("the dog wrote", "the fox wrote", 1)
    far = " ".join(reversed(long[11].split()))
    held_out = [{"text": t, "label": "a"} for t in (far, near)]
    report = audited(encoding, bert, train, held_out, ("a",))
    found = {f.kind: f.places for f in report.findings if f.severity == "warn"}
    assert found == {"near_overlap": ("test.jsonl row 2 like train.jsonl row 12",)}


def test_near_copies_are_found_and_rows_under_one_prompt_are_none() -> None:
    numbers = np.random.default_rng(1)
    prompt = np.arange(12)
    train, held_out = NearCopies(), NearCopies()
    known = [np.append(prompt, numbers.integers(0, 5000, size=80)) for _ in range(400)]
    for ids in known:
        train.add(ids)
    for number, ids in enumerate(known[:200]):
        near = ids.copy()
        near[20 + number % 60] = 5001  # resemblance 0.89
        held_out.add(near)
    for _ in range(200):
        held_out.add(np.append(prompt, numbers.integers(0, 5000, size=80)))
    found = held_out.within(train)
    assert all(one == other for one, other in found)  # none of the second half
    assert len(found) > 180


def test_classes_without_examples_with_one_and_without_another(bert: TaskTokenizer) -> None:
    labels = ("a", "b", "c", "d")
    train = [*texts(40), {"text": text(800), "label": "c"}]
    assert refusals(audited(classify(bert, labels), bert, train, labels=labels)) == {
        "empty_class": ("d",),
        "single_example": ("c in train.jsonl row 41",),
    }
    same = [row | {"label": "a"} for row in texts(5)]
    report = audited(classify(bert), bert, same, labels=("a",))
    assert refusals(report) == {"one_class": ("a from train.jsonl row 1 on",)}


def test_ids_and_labels_that_cannot_be(bert: TaskTokenizer) -> None:
    def broken(example: Example) -> Example:
        if example.row == 5:
            return replace(example, arrays={**example.arrays, "classes": np.array([7])})
        if example.row == 9:
            ids = np.append(example.arrays["inputs"], 10**6)
            return replace(example, arrays={**example.arrays, "inputs": ids})
        return example

    report = audited(classify(bert), bert, texts(40), labels=("a", "b"), change=broken)
    assert refusals(report) == {"unknown_label": rows(5), "beyond_vocabulary": rows(9)}


def test_texts_that_the_tokenizer_does_not_know(bert: TaskTokenizer) -> None:
    train = texts(40)
    train[6] = train[6] | {"text": "\u6771\u4eac " * 5}
    assert refusals(audited(classify(bert), bert, train, labels=("a", "b"))) == {
        "unknown_tokens": rows(7)
    }


def test_words_that_vanish(bert: TaskTokenizer) -> None:
    settings = TagSettings(tags="bio", scheme="same")
    encoding = TagEncoding(settings, bert, labels=("B-X", "O"), row_tokens=64)
    train: list[dict[str, Any]] = [
        {"tokens": text(n).split(), "tags": ["B-X", *["O"] * 9]} for n in range(20)
    ]
    assert refusals(audited(encoding, bert, train, labels=("B-X", "O"))) == {}
    train[4]["tokens"][0] = "\u200b"
    train[9]["tokens"][3] = "\u00ad"
    assert refusals(audited(encoding, bert, train, labels=("B-X", "O"))) == {
        "words_lost": rows(5, 10)
    }


def test_answers_that_no_window_holds(bert: TaskTokenizer) -> None:
    encoding = QaEncoding(QaSettings(stride=4), bert, row_tokens=24)
    contexts = [" ".join(text(n + i) for i in range(4)) for n in range(0, 200, 10)]
    train: list[dict[str, Any]] = [
        {"question": f"{WORDS[n % 15]} {WORDS[n // 15]}?", "context": c,
         "answers": [{"text": c[:9].strip(), "start": 0}]}
        for n, c in enumerate(contexts)
    ]  # fmt: skip
    assert refusals(audited(encoding, bert, train)) == {}
    for row in (3, 17):
        train[row]["answers"] = [{"text": contexts[row], "start": 0}]
    assert refusals(audited(encoding, bert, train)) == {"answer_lost": rows(4, 18)}


def test_what_an_encoder_decoder_says_counts_as_tokens_too(gpt: TaskTokenizer) -> None:
    settings = Seq2SeqSettings(prompt="{source}", target_tokens=24)
    encoding = EncoderDecoderEncoding(settings, gpt, row_tokens=32, start_id=0)
    pairs = [{"source": "the dog", "target": text(n)} for n in range(20)]
    facts = audited(encoding, gpt, pairs).facts["train"]
    assert facts["learnt"] > facts["tokens"] / 2  # targets are the longer ones here
    assert facts["learnt_share"] < 1


def test_targets_that_are_cut(gpt: TaskTokenizer) -> None:
    settings = Seq2SeqSettings(prompt="{source} =", target_tokens=24)
    encoding = PromptedEncoding(settings, gpt, row_tokens=128)
    train = [{"source": text(n), "target": f" {WORDS[n % 15]}"} for n in range(20)]
    assert refusals(audited(encoding, gpt, train)) == {}
    train[13]["target"] = text(3) * 4
    assert refusals(audited(encoding, gpt, train)) == {"answer_cut": rows(14)}


def chats(gpt: TaskTokenizer, template: str, *, row_tokens: int = 256) -> ChatEncoding:
    settings = ChatSettings(template="x", roles=("assistant",), turns="all", date=None)
    made = ChatTemplate(template, specials=SPECIALS, where="test")
    return ChatEncoding(settings, gpt, template=made, row_tokens=row_tokens)


def talks(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": text(n)},
                      {"role": "assistant", "content": WORDS[n % 15]}]}
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, *BUILT_IN.values()])
def test_clean_chats_pass(gpt: TaskTokenizer, template: str) -> None:
    report = audited(chats(gpt, template), gpt, talks(20))
    assert refusals(report) == {}
    assert 0 < report.facts["train"]["learnt_share"] < 0.5


def test_chats_with_nothing_to_learn(gpt: TaskTokenizer) -> None:
    train = talks(20)
    train[2]["messages"][0]["content"] = text(1) * 20
    report = audited(chats(gpt, CHATML, row_tokens=128), gpt, train)
    assert refusals(report) == {"nothing_learnt": rows(3)}


def test_answers_that_do_not_end(gpt: TaskTokenizer) -> None:
    endless = CHATML.replace("<|im_end|>\\n", " ")
    report = audited(chats(gpt, endless), gpt, talks(3))
    assert refusals(report) == {"end_missing": rows(1, 2, 3)}

    ends = gpt.special_texts["<|im_end|>"]

    def without_end(example: Example) -> Example:  # a store that somebody else wrote
        labels = example.arrays["labels"].copy()
        if example.row == 2:
            labels[np.flatnonzero(labels == ends)[0]] = 50  # of two answers the first
        return replace(example, arrays={**example.arrays, "labels": labels}, notes={})

    twice = [{"messages": row["messages"] * 2} for row in talks(3)]
    report = audited(chats(gpt, CHATML), gpt, twice, change=without_end)
    assert refusals(report) == {"end_missing": rows(2)}


def test_texts_that_begin_twice(gpt: TaskTokenizer) -> None:
    twice = "{{ bos_token }}{{ bos_token }}" + CHATML
    assert refusals(audited(chats(gpt, twice), gpt, talks(2))) == {"double_begin": rows(1, 2)}
    once = "{{ bos_token }}" + CHATML
    assert refusals(audited(chats(gpt, once), gpt, talks(2))) == {}


def test_a_template_of_another_tokenizer(gpt: TaskTokenizer) -> None:
    llama = (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}"
        "{{ eos_token }}{% endfor %}"
    )
    (found,) = template_findings(ChatTemplate(llama, specials=SPECIALS, where="x"), gpt)
    assert (found.kind, found.severity) == ("template_mismatch", "refuse")
    assert found.places == ("<|start_header_id|>", "<|end_header_id|>")
    for fitting in (CHATML, *BUILT_IN.values()):
        assert not template_findings(ChatTemplate(fitting, specials=SPECIALS, where="x"), gpt)


def test_clean_pairs_pass_and_cut_ones_do_not(gpt: TaskTokenizer) -> None:
    settings = PreferenceSettings(template="x", date=None)
    encoding = PreferenceEncoding(settings, gpt, template=None, row_tokens=64)
    train = [{"prompt": text(n), "chosen": " yes", "rejected": f" {WORDS[n]}"} for n in range(10)]
    assert refusals(audited(encoding, gpt, train)) == {}
    train[5]["rejected"] = text(9) * 4
    assert refusals(audited(encoding, gpt, train)) == {"answer_cut": rows(6)}


# --- the report --------------------------------------------------------------------------------


def test_what_refuses_is_one_sentence_with_rows_and_the_way_out(bert: TaskTokenizer) -> None:
    train = texts(40)
    train[20:40] = train[:20]
    report = audited(classify(bert), bert, train, labels=("a", "b"))
    with pytest.raises(DataError) as caught:
        report.check()
    message = str(caught.value)
    assert "20 examples repeat an earlier one: train.jsonl rows 21, 22, 23, 24" in message
    assert "29, 30 and 10 more; leave the copies out" in message
    assert message.endswith("or as they are: data.audit.allow=[duplicates]")
    report.check(allow=("duplicates",))
    assert "allowed (duplicates)" in as_text(report, allow=("duplicates",))


def test_a_report_comes_back_from_its_file(bert: TaskTokenizer, tmp_path: Path) -> None:
    train = texts(40)
    train[7] = train[3]
    report = audited(classify(bert), bert, train, labels=("a", "b"))
    write_audit(tmp_path, report)
    assert read_audit(tmp_path) == report
    assert not is_fit(tmp_path, subject="x", allow=())
    assert is_fit(tmp_path, subject="x", allow=("duplicates",))
    assert not is_fit(tmp_path, subject="other", allow=("duplicates",))
    (tmp_path / "audit.json").write_text("{")
    assert read_audit(tmp_path) is None


def test_every_kind_that_refuses_can_be_allowed_and_every_note_is_a_kind() -> None:
    assert set(get_args(AuditKind)) == {n for n, k in KINDS.items() if k.severity == "refuse"}
    assert set(NOTES) <= set(KINDS)
    for note in NOTES:
        example = Example({}, "x", 1, notes={note: 3})
        assert notes_of(bits_of(example)) == {note: 1}
    assert notes_of(bits_of(Example({}, "x", 1, was_cut=True))) == {"cut": 1}


def test_examples_are_shown_as_the_model_sees_them(gpt: TaskTokenizer, bert: TaskTokenizer) -> None:
    (talk,) = chats(gpt, CHATML).encode(Record(talks(1)[0], "train.jsonl", 1))
    lines = shown(talk, gpt, labels=(), speaks=True, colour=False)
    assert lines.startswith("--- train.jsonl row 1\n<|im_start|>system")
    assert lines.endswith("<|im_start|>assistant\n>>the<|im_end|><<")
    coloured = shown(talk, gpt, labels=(), speaks=True, colour=True)
    assert "\x1b[1;32mthe<|im_end|>\x1b[0m" in coloured
    settings = TagSettings(tags="bio", scheme="same")
    encoding = TagEncoding(settings, bert, labels=("B-X", "O"), row_tokens=64)
    (tagged,) = encoding.encode(Record({"tokens": ["the", "dog"], "tags": ["O", "B-X"]}, "t", 1))
    lines = shown(tagged, bert, labels=("B-X", "O"), speaks=False, colour=False)
    assert lines.endswith("[CLS] the>>/O<< dog>>/B-X<< [SEP]")
    (text_,) = classify(bert).encode(Record(texts(1)[0], "t", 1))
    assert shown(text_, bert, labels=("a", "b"), speaks=False, colour=False).endswith("\n=> >>a<<")
