"""The audit of pairs: no choice, contradictions, nothing learnt; and how a pair is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.tokenizer_folders import gpt_folder
from tests.unit.test_audit import audited, refusals, rows, text
from trainer.batch import IGNORED, REJECTED
from trainer.config.sections.encodings import PreferenceSettings
from trainer.data.audit_show import shown
from trainer.data.encodings.example import Example
from trainer.data.encodings.preference import PreferenceEncoding
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.records.record import Record


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> TaskTokenizer:
    return TaskTokenizer.open(gpt_folder(tmp_path_factory.mktemp("gpt")))


def pair(number: int, *, chosen: str = " yes", rejected: str = " no") -> dict[str, Any]:
    return {"prompt": text(number), "chosen": chosen, "rejected": rejected}


def test_pairs_that_are_no_choice_or_contradict_one_before(gpt: TaskTokenizer) -> None:
    settings = PreferenceSettings(template="x", date=None)
    encoding = PreferenceEncoding(settings, gpt, template=None, row_tokens=128)
    train = [pair(n) for n in range(10)]
    train[3] = pair(3, rejected=" yes")
    train[6] = pair(5, chosen=" no", rejected=" yes")  # the fifth, the other way round
    train[8] = pair(7)
    found = refusals(audited(encoding, gpt, train))
    assert found == {"same_answers": rows(4), "contradictions": rows(7), "duplicates": rows(9)}
    held_out = [pair(2, chosen=" no", rejected=" yes"), pair(20)]
    seen = {f.kind: f.places for f in audited(encoding, gpt, train[:3], held_out).findings}
    assert seen == {"same_input": rows(1, file="test.jsonl")}


def test_a_pair_of_which_nothing_is_learnt(gpt: TaskTokenizer) -> None:
    settings = PreferenceSettings(template="x", date=None)
    encoding = PreferenceEncoding(settings, gpt, template=None, row_tokens=128)

    def silent(example: Example) -> Example:
        if example.row != 2:
            return example
        its = example.arrays["answers"] == REJECTED
        labels = np.where(its, IGNORED, example.arrays["labels"])
        return replace(example, arrays={**example.arrays, "labels": labels})

    found = refusals(audited(encoding, gpt, [pair(n) for n in range(4)], change=silent))
    assert found == {"nothing_learnt": rows(2)}


def test_a_pair_is_shown_answer_by_answer(gpt: TaskTokenizer) -> None:
    settings = PreferenceSettings(template="x", date=None)
    encoding = PreferenceEncoding(settings, gpt, template=None, row_tokens=128)
    (example,) = encoding.encode(Record(pair(0), "train.jsonl", 1))
    _, one, other = shown(example, gpt, labels=(), speaks=False, colour=False).splitlines()
    assert one.startswith("+ <s>the")
    assert one.endswith(">> yes</s><<")
    assert other.startswith("- <s>the")
    assert other.endswith(">> no</s><<")
