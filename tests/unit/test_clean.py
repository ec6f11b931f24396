"""Corpora are written again without copies, bad texts and what evaluations are made of."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.configs import config
from trainer.commands import data_clean
from trainer.data.audit_copies import NearCopies
from trainer.data.clean import Wanted, judged, kept
from trainer.data.contamination import Evaluations, Overlap
from trainer.data.quality import fault_of
from trainer.errors import Exit
from trainer.records.json_file import write_json

_VOCABULARY = (
    *("time", "river", "engine", "house", "and", "the", "of", "that", "night", "train", "road"),
    *("paper", "light", "water", "stone"),
)


def text(seed: int, words: int = 120) -> str:
    draw = random.Random(seed)
    return "\n".join(
        " ".join(f"{draw.choice(_VOCABULARY)}{draw.choice(['', 's', 'ing'])}" for _ in range(12))
        + " and the"
        for _ in range(words // 12)
    )


def changed(original: str, share: float, *, seed: int = 0) -> str:
    draw = random.Random(seed)
    words = original.split()
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = f"other{draw.randrange(10**6)}"
    return " ".join(words)


def test_copies_go_and_the_first_stays() -> None:
    documents = [text(1), text(2), text(1).replace(" ", "  "), text(3), text(2)]
    verdict = judged(documents, Wanted())
    assert {n: (g.why, g.detail) for n, g in verdict.gone.items()} == {
        2: ("copy", "0"),
        4: ("copy", "1"),
    }
    assert list(kept(documents, verdict)) == [documents[0], documents[1], documents[3]]


def test_near_copies_go_and_others_stay() -> None:
    """One word of 140 changed: nine runs of ten are the same. One of five: one run of three is."""
    documents = [text(n) for n in range(40)]
    documents += [changed(text(n), 0.007, seed=n) for n in range(20)]
    documents += [changed(text(n), 0.2, seed=n) for n in range(20, 40)]
    verdict = judged(documents, Wanted(near_copies=True))
    gone = {n: int(g.detail) for n, g in verdict.gone.items()}
    assert all(earlier == number - 40 for number, earlier in gone.items())
    assert len([n for n in gone if n < 60]) >= 19
    assert not [n for n in gone if n >= 60]
    assert verdict.counts() == {"near copy": len(gone)}
    assert not judged(documents, Wanted()).gone


def test_what_is_alike_only_to_one_that_goes_stays() -> None:
    """a ~ b and b ~ c, but not a ~ c: b goes, c stays. By keys of bands made up for it."""
    near = NearCopies()
    table = np.arange(24, dtype=np.uint64).reshape(3, 8)
    table[1, :3] = table[0, :3]  # b has three bands of a
    table[2, 5:] = table[1, 5:]  # c has three others of b
    near._keys.frombytes(table.tobytes())
    assert near.again() == [(1, 0)]
    table[2, :3] = table[0, :3]
    again = NearCopies()
    again._keys.frombytes(table.tobytes())
    assert again.again() == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("the end of that", "not 50 to 100,000 words"),
        (" ".join(["of", "the", "a", "I"] * 30), "words too short or too long"),
        (text(1).replace("and the", "# and the ..."), "too many # or ellipses"),
        (" ".join(f"{n * 1111}" for n in range(100, 220)), "too few words with a letter"),
        (text(1).replace("and", "und").replace("the", "dieses").replace("of", "von")
         .replace("that", "dass"), "too few stop words"),
        ("\n".join(f"- {line}" for line in text(1).splitlines()), "almost all bullet points"),
        ("\n".join(f"{line}..." for line in text(1).splitlines()[:10]) + text(9, 240),
         "too many lines that break off"),
        ("\n".join([*text(1).splitlines()[:4]] * 3), "repeated lines"),
        (" ".join(f"{w} engine house" for w in text(1).split()),
         "one run of 2 words over and over"),
    ],
)  # fmt: skip
def test_every_rule_of_quality_finds_what_breaks_it(bad: str, rule: str) -> None:
    assert fault_of(bad) == rule


def test_a_good_text_breaks_no_rule() -> None:
    assert [fault_of(text(seed)) for seed in range(20)] == [None] * 20


def test_runs_of_words_that_an_evaluation_has_are_found() -> None:
    rows = [f"Question {n}: {' '.join(text(100 + n).split()[:20])}?" for n in range(5)]
    found = Evaluations({"a.jsonl": [*rows, "too short"], "b.jsonl": rows[:1]})
    assert not found.shares(text(1))
    quoted = f"{text(2)} {' '.join(text(103).split()[:20]).upper()}, he said"  # case, punctuation
    assert found.shares(quoted)
    assert found.overlaps() == {"a.jsonl": Overlap(6, 1, (4,)), "b.jsonl": Overlap(1, 0, ())}
    twelve = f"{text(2)} {' '.join(text(103).split()[:12])} nothing"
    assert not found.shares(twelve)


# --- the command ----------------------------------------------------------------------------------


def clean(
    folder: Path, lines: list[str], *options: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
    paths = f"data.sources.files.paths=[{folder / 'corpus.jsonl'}]"
    settings = config("data=jsonl", paths)
    write_json(folder / "config.json", settings.model_dump(mode="json"))
    capsys.readouterr()
    code = data_clean.main([str(folder / "config.json"), *options])
    shown = capsys.readouterr()
    return code, shown.err if code else shown.out


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_writes_what_stays_and_says_why_others_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {"question": " ".join(text(7).split()[:15]), "answer": "no", "number": 3}
    (tmp_path / "eval.jsonl").write_text(json.dumps(held) + "\n" + json.dumps({"q": "hm"}) + "\n")
    lines = [
        text(1),
        text(1),
        "short",
        text(7),
        changed(text(8), 0.0),
        changed(text(8), 0.007),
        text(9),
    ]
    options = ["--to", str(tmp_path / "out"), "--quality", "--near-copies"]
    options += ["--against", str(tmp_path / "eval.jsonl")]
    code, said = clean(tmp_path, lines, *options, capsys=capsys)
    assert code == Exit.DONE
    assert "3 of 7 documents stay" in said
    assert "a run of 13 words of 1 of 1 rows (1 more are shorter)" in said
    assert [row["text"] for row in rows_of(tmp_path / "out" / "files.jsonl")] == [
        lines[0], lines[4], lines[6],
    ]  # fmt: skip
    removed = rows_of(tmp_path / "out" / "removed.jsonl")
    assert [(r["document"], r["why"], r["detail"]) for r in removed] == [
        (1, "copy", "0"),
        (2, "quality", "not 50 to 100,000 words"),
        (3, "contaminated", ""),
        (5, "near copy", "4"),
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["evaluations"][str(tmp_path / "eval.jsonl")]["in_corpus"] == [1]
    code, said = clean(tmp_path, lines, *options, capsys=capsys)
    assert code == Exit.REFUSED
    assert "exists already; name a new folder with --to" in said


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["short"], ["--quality"], "none of 1 documents would stay; nothing is written"),
        ([text(1)], ["--against", "nowhere.jsonl"], "--against nowhere.jsonl is no file"),
    ],
)
def test_what_cannot_be_cleaned_leaves_nothing(
    lines: list[str],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--to", str(tmp_path / "out"), *options]
    code, said = clean(tmp_path, lines, *options, capsys=capsys)
    assert code in (Exit.REFUSED, Exit.STOP)
    assert message in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "corpus.jsonl"]
