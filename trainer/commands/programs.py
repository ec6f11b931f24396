"""`longhaul ask RUN FILE --tests FIELD`: programs that a model writes, run with their tests."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.dist.seeds import seed_of
from trainer.errors import DataError, Refused
from trainer.evals.drawn import Draw
from trainer.evals.generated import Decoding, answers
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.pass_at_k import PassAtK
from trainer.evals.metrics.sandbox import Limits, Outcome, check_sandbox, run_program
from trainer.evals.programs import Judge, ProgramForm, ks_named

_TEMPERATURE = 0.8  # of several programs a problem; one alone is the likeliest


@dataclass(frozen=True, kw_only=True)
class Task:
    """What programs are made of, checked before a model is loaded.

    `problems`: the fields of each row and where it lies. `judge`: runs a program, once each.
    """

    form: ProgramForm
    problems: Sequence[tuple[Mapping[str, Any], str]]
    samples: int
    ks: tuple[int, ...]
    temperature: float
    top_p: float
    seed: int
    judge: Judge


@dataclass(frozen=True)
class Written:
    """One program, and what became of it."""

    problem: int
    sample: int
    where: str
    prompt: str
    answer: str
    program: str
    outcome: Outcome

    def as_json(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "outcome"}
        return kept | {"passed": self.outcome.passed, "said": self.outcome.said}


def task_of_programs(
    given: argparse.Namespace, rows: Sequence[tuple[Mapping[str, Any], str]], *, template: str
) -> Task:
    """`template`: as ProgramForm's.

    Raises: Refused for settings that contradict each other, and where programs cannot be kept
    apart from network and files; DataError for a row whose tests are missing, or fail the answer
    that the row itself gives.
    """
    if given.samples < 1 or given.seconds <= 0 or given.memory_mb < 1:
        raise Refused("--samples, --seconds and --memory-mb are above 0")
    temperature = given.temperature
    if temperature is None:
        temperature = _TEMPERATURE if given.samples > 1 else 0.0
    if temperature < 0 or not 0 < given.top_p <= 1:
        raise Refused("--temperature is at least 0, --top-p above 0 and at most 1")
    if given.samples > 1 and temperature == 0:
        raise Refused(
            f"--temperature 0 writes the same program {given.samples} times: give a higher one, or "
            "--samples 1"
        )
    form = ProgramForm(tests=given.tests, template=template)
    ks = ks_named(given.k, samples=given.samples)
    for fields, where in rows:
        form.program(fields, "", where=where)
    limits = Limits(seconds=given.seconds, memory_mb=given.memory_mb)
    check_sandbox(limits=limits)
    judge = Judge(lambda program: run_program(program, limits=limits))
    if given.answer:
        _check_own_answers(form, rows, given.answer, judge)
    return Task(
        form=form,
        problems=rows,
        samples=given.samples,
        ks=ks,
        temperature=temperature,
        top_p=given.top_p,
        seed=given.seed,
        judge=judge,
    )


def _check_own_answers(
    form: ProgramForm,
    rows: Sequence[tuple[Mapping[str, Any], str]],
    field: str,
    judge: Judge,
) -> None:
    """Tests that the right answer fails say nothing of any other."""
    for fields, where in rows:
        if field not in fields:
            raise DataError(f"{where} has no field {field!r} (it has {', '.join(fields)})")
        outcome = judge(form.program(fields, str(fields[field]), where=where))
        if not outcome.passed:
            raise DataError(
                f"{where}: its own {field} does not pass its tests ({outcome.said}); mend the row, "
                "--program or --seconds, or leave --answer out"
            )


def write_programs(
    task: Task,
    prompts: Sequence[str],
    *,
    model: Any,
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
    decoding: Decoding,
    finish: Callable[[str], str],
    quiet: bool,
) -> list[Written]:
    """Generated and run, in the order of the problems. `finish`: what of a text is the program."""
    ids = [encode(prompt) for prompt in prompts]
    numbers = [(p, s) for p in range(len(prompts)) for s in range(task.samples)]
    if task.temperature:
        decoding = replace(decoding, draw=_draw(task, numbers))
    said: dict[int, list[int]] = {}
    for number, answer_ids in answers(model, [ids[p] for p, _ in numbers], decoding):
        said[number] = answer_ids
        _progress("written", len(said), len(numbers), quiet=quiet)
    written = []
    for number, (p, s) in enumerate(numbers):
        fields, where = task.problems[p]
        answer = finish(_continued(decode, ids[p], said[number]))
        program = task.form.program(fields, answer, where=where)
        outcome = task.judge(program)
        written.append(Written(p, s, where, prompts[p], answer, program, outcome))
        _progress("run", len(written), len(numbers), quiet=quiet)
    return written


def _draw(task: Task, numbers: Sequence[tuple[int, int]]) -> Draw:
    """A program depends on the seed, its problem's number and its own: not on how many others."""
    seeds = [seed_of("program", task.seed, problem, sample) for problem, sample in numbers]
    return Draw(temperature=task.temperature, top_p=task.top_p, seeds=seeds)


def _continued(
    decode: Callable[[Sequence[int]], str], prompt: Sequence[int], answer: Sequence[int]
) -> str:
    """What the answer adds to the prompt: alone, some tokenizers decode it without its first space,
    which in a program may be the indentation."""
    before, whole = decode(prompt), decode([*prompt, *answer])
    return whole[len(before) :] if whole.startswith(before) else decode(answer)


def scores_of(task: Task, written: Sequence[Written]) -> dict[str, Any]:
    score = Running(PassAtK(task.ks))
    passed: dict[int, list[bool]] = {}
    for one in written:
        passed.setdefault(one.problem, []).append(one.outcome.passed)
    for verdicts in passed.values():
        score.add(verdicts, None)
    why = Counter("passed" if w.outcome.passed else _kind(w.outcome.said) for w in written)
    return {
        "problems": len(passed),
        "samples": task.samples,
        "temperature": task.temperature,
        **score.value(),
        "solved": sum(map(any, passed.values())),
        "programs": dict(sorted(why.items())),
    }


def _kind(said: str) -> str:
    """`timeout`, `killed`, or the name of the error."""
    kind, _, why = said.partition(": ")
    return why.split(" ")[0] if kind == "failed" and why else kind


def show(result: dict[str, Any], written: Sequence[Written], *, seconds: float) -> None:
    first = written[0]
    verdict = "passed" if first.outcome.passed else first.outcome.said
    print(f"{first.program}\n    {verdict}\n")
    how = "the likeliest" if result["temperature"] == 0 else f"temperature {result['temperature']}"
    print(
        f"step {result['step']}, {result['problems']:,} problems, {result['samples']} programs "
        f"each ({how})"
    )
    for name, value in result.items():
        if name.startswith("pass@"):
            print(f"  {name:20} {value:.4f}")
    print(f"  {'problems solved':20} {result['solved']:,} of {result['problems']:,}")
    print("  " + ", ".join(f"{count:,} {why}" for why, count in result["programs"].items()))
    print(f"  in {seconds:.1f} s")


def _progress(what: str, done: int, total: int, *, quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        print(f"\r{done}/{total} {what}", end="\n" if done == total else "", file=sys.stderr)
