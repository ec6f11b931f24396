"""Texts made of texts: the same every time, and only as much changed as was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tokenizer_folders import t5_folder
from trainer.config.sections.examples import AugmentSettings, BackTranslation
from trainer.data.augment import Augmentation, augmented, read_lexicon
from trainer.errors import DataError
from trainer.models.round_trip import RoundTrip
from trainer.records.example_lookup import translator_facts
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


# --- another language and back --------------------------------------------------------------------


def _translator(folder: Path, seed: int) -> str:
    """A model of random weights that says something else for every text."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(seed)
    t5_folder(folder)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=420, decoder_start_token_id=0, **shape)
    transformers.T5ForConditionalGeneration(config).eval().save_pretrained(folder)
    return str(folder)


def _by_hand(folder: str, text: str) -> str:
    """One text, the likeliest token each time, without transformers' generate."""
    transformers: Any = import_module("transformers")
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(text, return_tensors="pt", truncation=True, max_length=12).input_ids
    said = [0]
    for _ in range(12):
        with torch.no_grad():
            logits = model(input_ids=given, decoder_input_ids=torch.tensor([said])).logits
        said.append(int(logits[0, -1].argmax()))
        if said[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(said, skip_special_tokens=True))


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> BackTranslation:
    folder = tmp_path_factory.mktemp("translators")
    there, back = (_translator(folder / name, n) for n, name in enumerate(("there", "back")))
    return BackTranslation(there=there, back=back, there_prefix="say: ", max_tokens=12)


def test_texts_come_back_as_the_two_models_say_them(two_models: BackTranslation) -> None:
    texts = ["the engine found a fault", "a house", "Peter Blackburn works for Acme in Berlin"]
    found = RoundTrip(two_models)(texts)
    for text, back in zip(texts, found, strict=True):  # of several lengths, together and alone
        assert back == _by_hand(two_models.back, _by_hand(two_models.there, f"say: {text}"))
    with pytest.raises(DataError, match=r"nowhere is no folder of an encoder-decoder"):
        RoundTrip(two_models.model_copy(update={"there": "nowhere"}))(texts)


def test_what_came_back_is_one_more_copy_of_what_is_trained_on(
    two_models: BackTranslation, tmp_path: Path
) -> None:
    asked: list[str] = []

    def translate(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        return [text.upper() if "same" not in text else text for text in texts]

    settings = settings_of(copies=0, back_translation=two_models)

    def every(translate: Any) -> list[tuple[str, bool]]:
        augmentation = Augmentation(settings, task="classify", root=tmp_path, translate=translate)
        texts = ["one", "the same", "held out", "two", ""]
        given = [
            (Record({"text": text, "label": "x"}, "a.csv", row), text != "held out")
            for row, text in enumerate(texts)
        ]
        return [
            (made.fields["text"], is_trained)
            for record, is_trained in augmentation.ahead(given)
            for made in (augmentation.of(record) if is_trained else [record])
        ]

    found = every(translate)
    assert found == [
        ("one", True), ("ONE", True), ("the same", True), ("held out", False),
        ("two", True), ("TWO", True), ("", True),
    ]  # fmt: skip
    assert asked == ["one", "the same", "two"]  # never what is held out
    (kept,) = (tmp_path / "back-translations").iterdir()
    assert len(kept.read_text().splitlines()) == 3
    assert every(translate) == found
    assert len(asked) == 3  # nothing is asked twice
    with kept.open("a") as file:
        file.write('{"text": "cut')  # its writer was killed
    assert every(translate) == found
    kept.write_text("no line\n" + kept.read_text())
    with pytest.raises(DataError, match=r"jsonl row 1 is damaged; remove the file"):
        every(translate)


def test_a_store_is_keyed_by_both_models(two_models: BackTranslation, tmp_path: Path) -> None:
    facts = translator_facts(two_models.model_dump())
    assert facts[0] != facts[1]
    assert any("model.safetensors" in name for name, *_ in facts[0])
    with pytest.raises(DataError, match=r"back_translation.back: there is no folder nowhere"):
        translator_facts({**two_models.model_dump(), "back": "nowhere"})
    with pytest.raises(DataError, match=r"labels of task=tag speak of places"):
        Augmentation(settings_of(copies=0, back_translation=two_models), task="tag")
