"""Four small fine-tuning tasks, made from public texts by fixed rules and one fixed seed.

agnews  the class of a piece of news (title and text), four classes
pair    a title and a text: do they belong together? Half of the texts are those of another piece
        of the same class
tag     names: runs of capitalised words in the middle of a sentence, as BIO tags. The encoder's
        tokenizer is uncased, so that a name has to be known
qa      words of a piece of news around a name, a hole in its place, and a passage of one or two
        pieces, some of them longer than a row: the name

Both arms read the same files: JSON lines, and for `qa` the answers as Hugging Face has them.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20  # of what is in which split; the seeds of runs are others
HOLE = "what"
Rows = list[dict[str, Any]]
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*(?=[ ,.])")
_AROUND = 4  # words of the question on either side of the hole


@dataclass(frozen=True)
class FinetuneTask:
    """`recipe`: what both arms do. Examples, not rows: ours packs as many to a row as fit."""

    name: str
    train: int  # examples
    test: int
    score: str  # its name in `eval_...` of ours; HF's arm computes the same
    overrides: tuple[str, ...]
    row_tokens: int = 128
    batch: int = 32  # examples a step
    learning_rate: float = 1e-4
    lora_rate: float = 2e-3
    stride: int = 32
    labels: tuple[str, ...] = ()


TASKS = {
    task.name: task
    for task in (
        FinetuneTask(
            "agnews", 6_000, 1_600, "accuracy", ("task=classify",), labels=("1", "2", "3", "4")
        ),
        FinetuneTask(
            "pair",
            1_500,
            800,
            "accuracy",
            ("task=classify",),
            labels=("no", "yes"),
            batch=16,
        ),
        FinetuneTask(
            "tag",
            1_500,
            500,
            "entity_f1",
            ("task=tag", "task.tags=bio"),
            labels=("O", "B-NAME", "I-NAME"),
            learning_rate=2e-4,
            batch=15,  # three packed rows, nearly
        ),
        FinetuneTask(
            "qa",
            2_500,
            500,
            "f1",
            ("task=extract_qa", "task.no_answer=false", "task.stride=32"),
            learning_rate=3e-4,
            batch=9,  # four packed rows, nearly
        ),
    )
}


def write_task(task: FinetuneTask, data: Path, folder: Path) -> tuple[Path, Path]:
    """train.jsonl and test.jsonl of the task, made if they are not there.

    `data`: a folder with ag_news/ag_news.csv and wikitext-2/{test,valid}.txt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"agnews": _agnews, "pair": _pairs, "tag": _tags, "qa": _questions}[task.name](data)
    if len(rows) < task.train + task.test:
        raise SystemExit(f"{task.name}: {len(rows)} examples; {task.train + task.test} are asked")
    parts = {"train": rows[: task.train], "test": rows[task.train : task.train + task.test]}
    for name, part in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        path = folder / f"{name}.jsonl"
        if not path.exists() or path.read_text() != text:  # a store is made once a file
            path.write_text(text)
    return folder / "train.jsonl", folder / "test.jsonl"


def data_folder() -> Path:
    """Where the tests look as well: $LONGHAUL_TEST_DATA, or ../shared/data."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LONGHAUL_TEST_DATA") or beside)


def read_rows(path: Path) -> Rows:
    """Lines end with a newline alone; texts may hold other separators of Unicode."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _news(data: Path) -> list[tuple[str, str, str]]:
    with (data / "ag_news/ag_news.csv").open(newline="") as file:
        rows = [(label, title, text) for label, title, text in csv.reader(file)]
    random.Random(SEED).shuffle(rows)
    return rows


def _agnews(data: Path) -> Rows:
    return [{"text": f"{title} {text}", "label": label} for label, title, text in _news(data)]


def _pairs(data: Path) -> Rows:
    """A wrong text is the next one of the same class, so that the topic tells nothing."""
    news = _news(data)
    after: dict[int, int] = {}
    last: dict[str, int] = {}
    for number, (label, _, _) in enumerate(news):
        if label in last:
            after[last[label]] = number
        last[label] = number
    found: Rows = []
    coin = random.Random(SEED + 1)
    for number, (_, title, text) in enumerate(news):
        wrong = coin.random() < 0.5 and number in after
        pair = news[after[number]][2] if wrong else text
        found.append({"text": title, "text_pair": pair, "label": "no" if wrong else "yes"})
    return found


def _sentences(data: Path) -> Iterator[list[str]]:
    """Words of sentences of WikiText-2; none with an unknown word."""
    for name in ("test", "valid"):
        for line in (data / f"wikitext-2/{name}.txt").read_text().splitlines():
            if line.strip().startswith("=") or not line.strip():
                continue
            for sentence in re.split(r"(?<= [.!?]) ", line.strip()):
                words = re.sub(r" @(.)@ ", r"\1", sentence).split()
                if 5 <= len(words) <= 80 and "<unk>" not in words:
                    yield words


def _name_tags(words: Sequence[str]) -> list[str]:
    tags: list[str] = []
    for number, word in enumerate(words):
        is_name = number > 0 and bool(re.fullmatch(r"[A-Z][a-z]+", word))
        goes_on = is_name and tags[-1] != "O"
        tags.append("I-NAME" if goes_on else "B-NAME" if is_name else "O")
    return tags


def _tags(data: Path) -> Rows:
    once = dict.fromkeys(tuple(words) for words in _sentences(data))
    rows: Rows = [{"tokens": list(words), "tags": _name_tags(words)} for words in once]
    random.Random(SEED).shuffle(rows)
    return rows


def _questions(data: Path) -> Rows:
    """Passages of one or two pieces of news; the name stands once in its passage. In the order of
    the passages, so that hardly any is in both splits."""
    coin = random.Random(SEED)
    news = [text for _, _, text in _news(data)]
    found: Rows = []
    begin = 0
    while begin < len(news):
        size = coin.choice((1, 1, 1, 2))
        passage = news[begin : begin + size]
        begin += size
        context = " ".join(passage)
        for text in passage:
            holes = [m for m in _NAME.finditer(text) if context.count(m[0]) == 1]
            hole = coin.choice(holes) if holes else None
            if hole is not None:
                before, behind = text[: hole.start()].split(), text[hole.end() :].split()
                question = " ".join([*before[-_AROUND:], HOLE, *behind[:_AROUND]])
                if len(question) > 100:  # an address, or markup: more tokens than words
                    continue
                answers = {"text": [hole[0]], "answer_start": [context.index(hole[0])]}
                given = {"question": question, "context": context, "answers": answers}
                found.append({"id": f"q{len(found)}", **given})
    return found
