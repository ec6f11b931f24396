"""Programs put together from rows and answers; tokens drawn as transformers would, row by row."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from trainer.errors import DataError, Refused
from trainer.evals.drawn import Draw, Drawing
from trainer.evals.metrics.sandbox import Outcome
from trainer.evals.programs import Judge, ProgramForm, cut, ks_named


def test_answer_and_tests_become_one_program() -> None:
    row = {"tests": ["assert f(1) == 2", "assert f(2) == 3"], "answer": "its own", "name": "f"}
    plain = ProgramForm(tests="tests")
    made = plain.program(row, "def f(x):\n    return x + 1", where="row 1")
    assert made == "def f(x):\n    return x + 1\nassert f(1) == 2\nassert f(2) == 3\n"
    # HumanEval: the prompt is the beginning of the function, and its tests are called by name.
    called = ProgramForm(tests="test", template="{prompt}{answer}\n{tests}\ncheck({entry_point})")
    test = "def check(g):\n    assert g(1) == 2"
    problem = {"prompt": "def f(x):\n", "test": test, "entry_point": "f"}
    made = called.program(problem, "    return {x}", where="row 1")
    assert made.splitlines()[1:] == ["    return {x}", *test.splitlines(), "check(f)"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"code": ""}, "row 3 has no field 'tests' (it has code), which --tests names"),
        ({"tests": []}, "row 3: tests holds no tests"),
        ({"tests": 7}, "row 3: tests holds no tests"),
        ({"tests": "assert f"}, "row 3 has no field 'prompt' (it has tests), which --program"),
    ],
)
def test_a_problem_without_tests_is_named(row: dict[str, object], message: str) -> None:
    form = ProgramForm(tests="tests", template="{prompt}{answer}\n{tests}")
    with pytest.raises(DataError, match=re.escape(message)):
        form.program(row, "x", where="row 3")


def test_a_template_that_tests_nothing_is_refused() -> None:
    with pytest.raises(Refused, match=r"leaves out \{tests\}: nothing would be tested"):
        ProgramForm(tests="tests", template="{answer}")
    with pytest.raises(Refused, match=r"write \{\{ for a brace"):
        ProgramForm(tests="tests", template="{answer}{")
    with pytest.raises(DataError, match=r"no field 'a.__class__'"):
        ProgramForm(tests="t", template="{answer}{tests}{a.__class__}").program(
            {"t": "x", "a": 1}, "", where="row 1"
        )


def test_numbers_of_programs() -> None:
    assert ks_named("10, 1,10", samples=20) == (1, 10)
    for text in ("0", "a", "1,", "-1"):
        with pytest.raises(Refused, match="give whole numbers from 1 on"):
            ks_named(text, samples=5)
    with pytest.raises(Refused, match="--k 10 needs as many programs a problem: --samples 10"):
        ks_named("1,10", samples=5)


def test_a_program_ends_at_the_first_of_several_ends() -> None:
    assert cut("a\ndef b\nclass c", ["\nclass", "\ndef"]) == "a"
    assert cut("a", ["", "b"]) == "a"


def test_what_was_written_twice_runs_once() -> None:
    ran: list[str] = []

    def run(program: str) -> Outcome:
        ran.append(program)
        return Outcome(program == "good", "")

    judge = Judge(run)
    assert [judge(p).passed for p in ("good", "bad", "good", "bad")] == [True, False, True, False]
    assert ran == ["good", "bad"]


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.8), (1.5, 1.0), (0.2, 0.95)])
def test_tokens_come_as_often_as_transformers_says(temperature: float, top_p: float) -> None:
    """6,000 draws of 12 tokens: within 5 standard deviations, and never one that is cut off."""
    logits_1V = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    cut_1V = TemperatureLogitsWarper(temperature)(torch.zeros(1, 1), logits_1V)
    chances_V = TopPLogitsWarper(top_p)(torch.zeros(1, 1), cut_1V)[0].softmax(-1).double()
    count = 6000
    seeds = range(count)
    drawing = Drawing(Draw(temperature=temperature, top_p=top_p, seeds=seeds), seeds)
    only_RV = drawing(torch.zeros(count, 1), logits_1V.expand(count, -1))
    assert (only_RV > float("-inf")).sum() == count
    found_V = torch.bincount(only_RV.argmax(-1), minlength=12) / count
    assert (found_V[chances_V == 0] == 0).all()
    spread_V = (chances_V * (1 - chances_V) / count).sqrt()
    assert ((found_V - chances_V).abs() <= 5 * spread_V + 1e-12).all()


def test_a_rows_tokens_do_not_depend_on_those_beside_it() -> None:
    logits = torch.randn(4, 5, 30, generator=torch.Generator().manual_seed(4))  # (step, row, token)
    draw = Draw(temperature=1.0, top_p=0.9, seeds=(5, 6, 7, 8, 9))
    together = Drawing(draw, draw.seeds)
    alone = Drawing(draw, draw.seeds[2:3])
    ids = torch.zeros(1, 1)
    many = [together(ids, logits[step]).argmax(-1) for step in range(4)]
    one = [alone(ids, logits[step, 2:3]).argmax(-1) for step in range(4)]
    assert [int(m[2]) for m in many] == [int(o) for o in one]
    assert len({tuple(int(m[row]) for m in many) for row in range(5)}) == 5
