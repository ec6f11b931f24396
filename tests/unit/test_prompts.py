"""Rows and a template -> questions, worked examples, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.errors import DataError, Refused
from trainer.evals.likelihood import continuation
from trainer.evals.prompts import Form, Posed, shots

_ROW = {"question": "Is it so?", "label": "no", "options": ["red", "blue"], "gold": 1}
_YES_NO = Form(template="Q: {question}\nA:", answer="label", choices=("yes", "no"))


def test_a_template_is_filled_from_the_row() -> None:
    assert _YES_NO.posed(_ROW, where="x") == Posed("Q: Is it so?\nA:", ("yes", "no"), "no")
    assert _YES_NO.worked(_ROW, where="x") == "Q: Is it so?\nA: no\n\n"
    lines = Form(template="{question}\n", answer="label")
    assert lines.worked(_ROW, where="x") == "Is it so?\nno\n\n"  # no space after a line's end
    braces = Form(template="{{{question}}}", answer="label")
    assert braces.posed(_ROW, where="x").prompt == "{Is it so?}"


def test_a_row_may_bring_its_own_choices_and_number_the_right_one() -> None:
    own = Form(template="{question}", answer="gold", choices_field="options")
    assert own.posed(_ROW, where="x") == Posed("Is it so?", ("red", "blue"), "blue")


def test_examples_are_drawn_once_and_the_same_for_a_seed() -> None:
    rows: list[Any] = [({"question": f"{i}?", "label": "yes"}, f"row {i}") for i in range(9)]
    drawn = shots(_YES_NO, rows, 3, seed=1)
    assert drawn == shots(_YES_NO, rows, 3, seed=1) != shots(_YES_NO, rows, 3, seed=2)
    assert drawn.count("A: yes\n\n") == 3
    with pytest.raises(Refused, match="--shots 10: there are 9 rows"):
        shots(_YES_NO, rows, 10, seed=1)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (_YES_NO, {"label": "no"}, r"row 3 has no field 'question' \(it has label\), which --temp"),
        (_YES_NO, _ROW | {"label": "maybe"}, r"row 3: label='maybe' is none of the choices"),
        (_YES_NO, _ROW | {"label": 2}, r"label=2 is none of the choices"),
        (_YES_NO, _ROW | {"label": True}, r"label=True is none of the choices"),
        (Form(template="{gold}", answer="gold", choices_field="label"), _ROW, "is not a list of"),
    ],
)
def test_a_row_that_does_not_fit_is_named(form: Form, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        form.posed(row, where="row 3")


@pytest.mark.parametrize(
    ("template", "message"),
    [("Answer:", "names no field"), ("{question", "write {{ for a brace")],
)
def test_a_template_that_asks_nothing_is_refused(template: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Form(template=template, answer="label")


def test_a_field_is_a_name_and_no_way_into_objects() -> None:
    sly = Form(template="{question.__class__}", answer="label")
    with pytest.raises(DataError, match=r"no field 'question\.__class__'"):
        sly.posed(_ROW, where="row 1")


def test_the_whole_text_is_encoded_and_cut_where_the_prompt_ends() -> None:
    def words(text: str) -> list[int]:
        return [len(word) for word in text.split(" ") if word]

    found = continuation(words, "a bb ", "ccc dddd")
    assert (found.prompt, found.answer) == ((1, 2), (3, 4))
    nothing_before = continuation(lambda text: [7] * len(text), "", "ab")
    assert len(nothing_before.answer) == 2
