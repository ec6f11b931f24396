"""Texts made of texts: the same every time, and only as much changed as was asked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from trainer.config.sections.examples import AugmentSettings
from trainer.data.augment import Augmentation, augmented, read_lexicon
from trainer.errors import DataError
from trainer.records.record import Record

TEXT = "The quick brown fox,\njumps over  the lazy dog and writes the notes of a long day"
WORDS = TEXT.split()
LEXICON = {"quick": ("fast", "swift"), "the": ("this",), "fox": ("vixen",)}


def settings_of(**settings: Any) -> AugmentSettings:
    none = {"seed": 1, "copies": 1, "fields": ("text",), "lexicon": None, "synonyms": 0,
            "delete": 0, "swap": 0, "mask": 0, "mask_text": "[MASK]"}  # fmt: skip
    return AugmentSettings(**none | settings)


def made(*, row: int = 1, file: str = "a/x.csv", **settings: Any) -> list[str]:
    record = Record({"text": TEXT, "label": "x"}, file, row)
    found = list(augmented(record, settings_of(**settings), LEXICON))
    assert found[0] is record
    assert all(r.fields["label"] == "x" and r.row == row for r in found)
    return [r.fields["text"] for r in found[1:]]


def test_it_depends_on_seed_file_and_row_alone() -> None:
    same = made(swap=0.5, copies=3)
    assert len(set(same)) == 3
    assert made(swap=0.5, copies=3) == same == made(swap=0.5, copies=3, file="elsewhere/x.csv")
    for other in ({"seed": 2}, {"row": 2}, {"file": "y.csv"}):
        assert made(swap=0.5, copies=3, **other) != same


def test_synonyms_keep_capitals_marks_and_line_ends() -> None:
    (found,) = made(synonyms=1)
    assert found.startswith(
        ("This fast brown vixen,\njumps over  this", "This swift brown vixen,\n")
    )


def test_swaps_lose_no_word_and_deletions_lose_their_share() -> None:
    (swapped,) = made(swap=0.5)
    assert sorted(swapped.split()) == sorted(WORDS)
    assert swapped.split() != WORDS
    left = [len(text.split()) for text in made(delete=0.3, copies=50)]
    assert 0.6 < sum(left) / len(left) / len(WORDS) < 0.8
    rest = made(delete=0.99, copies=50)
    assert len(rest) == len(set(rest)) < 50  # each once
    assert min(len(text.split()) for text in rest) == 1


def test_spans_are_masked_up_to_their_share() -> None:
    for text in made(mask=0.4, copies=30):
        words = text.split()
        assert "[MASK]" in words
        assert all(one != "[MASK]" or other != "[MASK]" for one, other in pairwise(words))
        assert len(WORDS) - len([w for w in words if w != "[MASK]"]) == int(0.4 * len(WORDS))


def test_a_copy_that_changed_nothing_is_none() -> None:
    assert made(copies=5) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("quick\tfast\nslow", "row 2 is no word, a tab, and words between commas: 'slow'"),
        ("quick\t , ", "row 1 is no word"),
        ("# nothing\n", "has no word"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_bad_lexicons_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "lexicon.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"lexicon\.tsv") as caught:
        read_lexicon(path)
    assert message in str(caught.value)
    path.write_text("# of ours\nQuick\tfast, swift\n\nfox\tvixen\n")
    assert read_lexicon(path) == {"quick": ("fast", "swift"), "fox": ("vixen",)}


def test_labels_that_speak_of_places_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels of task=tag speak of places .*copies=0"):
        Augmentation(settings_of(), task="tag")
    Augmentation(settings_of(copies=0), task="tag")
    path = tmp_path / "words.tsv"
    path.write_text("quick\tfast\n")
    made = Augmentation(settings_of(synonyms=1, lexicon=str(path)), task="classify")
    record = Record({"text": "quick"}, "x.csv", 1)
    assert [r.fields["text"] for r in made.of(record)] == ["quick", "fast"]
