"""longhaul ask RUN FILE --template TEXT --answer FIELD: questions of your own, scored.

RUN may be a run, one of its checkpoints, or a folder made by longhaul export; a model that goes
on with texts. FILE: JSONL, JSON, CSV, TSV or Parquet, a question a row; {name} in the template
is a field. With choices the likeliest is the answer; without, the model writes one. One process.
example: longhaul ask my-run boolq.jsonl --template "{passage}\\nQuestion: {question}?\\nAnswer:" \\
             --choices yes,no --answer label --shots 4 --from boolq-train.jsonl
         longhaul ask my-run gsm8k.jsonl --template "Q: {question}\\nA:" --answer answer \\
             --extract "#### (.+)" --max-new-tokens 300 --until "\\nQ:"
With --tests FIELD answers are programs, each run with the tests of its row in a process of its own,
apart from network and files: --samples of them a problem, and pass@k of every --k.
         longhaul ask my-run mbpp.jsonl --template "{text}\\n" --tests test_list \\
             --samples 20 --k 1,10 --max-new-tokens 300 --write programs.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.commands.arguments import defaults_of, trained_parser
from trainer.commands.ending import ended
from trainer.errors import DataError, Exit, Refused

_BATCH = 8
_SHOWN = 2
Rows = Sequence[tuple[Mapping[str, Any], str]]


def main(argv: list[str] | None = None) -> int:
    parser = trained_parser("ask", __doc__)
    parser.add_argument("file", type=Path, help="questions, one a row")
    parser.add_argument("--template", required=True, help="a prompt; {name} is a field, \\n a line")
    parser.add_argument("--answer", default="", help="field of the right answer")
    parser.add_argument("--choices", default="", help="answers there are, with commas between")
    parser.add_argument("--choices-field", default="", help="field with a row's own choices")
    parser.add_argument("--shots", type=int, default=0, help="worked examples before a question")
    parser.add_argument("--from", dest="examples", type=Path, help="file of the worked examples")
    parser.add_argument("--seed", type=int, default=0, help="which examples are drawn")
    parser.add_argument("--limit", type=int, default=0, help="the first so many questions; 0: all")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a written answer")
    until = (
        "an answer ends before this (several: give it again); \\n, of programs none, if not given"
    )
    parser.add_argument("--until", action="append", help=until)
    parser.add_argument("--extract", default="", help="regular expression; its group is compared")
    parser.add_argument("--scores", default="", help="as evaluate's; exact_match if not given")
    parser.add_argument("--write", type=Path, help="a new file for the answers, a JSON line each")
    _add_programs(parser)
    given = parser.parse_args(argv)
    return ended(lambda: _ask(given))


def _add_programs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers that are programs")
    group.add_argument("--tests", default="", help="field of tests in Python: a text, or its lines")
    what = "what is run: {answer} and {tests} are these, {name} another field"
    group.add_argument("--program", default="{answer}\\n{tests}\\n", help=what)
    group.add_argument("--samples", type=int, default=1, help="programs for each problem")
    group.add_argument("--k", default="1", help="pass@k of these, as in 1,10")
    group.add_argument("--temperature", type=float, help="0.8 of several samples, 0 of one")
    group.add_argument("--top-p", type=float, default=0.95, help="1: all tokens")
    group.add_argument("--seconds", type=float, default=10.0, help="that a program may take")
    group.add_argument("--memory-mb", type=int, default=512, help="that a program may use")


@dataclass(frozen=True)
class _Answered:
    """`nats`: of every choice, where there are some."""

    said: list[str]
    values: dict[str, float]
    nats: list[dict[str, float]]


def _ask(given: argparse.Namespace) -> Exit:
    from trainer.commands.programs import task_of_programs
    from trainer.data.task_tokenizer import TaskTokenizer
    from trainer.dist.device import choose_device
    from trainer.dist.world import Place
    from trainer.engine.model_setup import weight_dtype
    from trainer.evals.prompts import Posed
    from trainer.export.trained import load_model, open_trained

    started = time.perf_counter()
    _check(given)
    rows = _questions(given)
    posed: list[Posed] = _posed(given, rows)
    template = _unescaped(given.program)
    programs = task_of_programs(given, rows, template=template) if given.tests else None
    trained = open_trained(given.path, step=given.step, defaults=defaults_of(given))
    task = trained.plan.config.task
    if task.head != "next_token":
        raise Refused(f"a model of task={task.kind} does not continue a text; nothing to ask it")
    folder = given.path if (given.path / "tokenizer.json").is_file() else None
    tokenizer = TaskTokenizer.open(folder or Path(trained.plan.stores[0].path))
    dtype = weight_dtype(trained.plan.config.precision.kind)
    device = choose_device(trained.plan.device, Place())
    model = load_model(trained, dtype=dtype, device=device)
    if programs is not None:
        return _programmed(given, programs, posed, model, tokenizer, trained.step)
    answered = (_chosen if posed[0].choices else _written)(given, posed, model, tokenizer)
    if given.write:
        lines = (
            {"prompt": one.prompt, "answer": said, "right": one.right, "nats": nats}
            for one, said, nats in zip(posed, answered.said, answered.nats, strict=True)
        )
        given.write.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines))
    result = {"step": trained.step, "questions": len(posed), "shots": given.shots}
    if given.json:
        print(json.dumps(result | answered.values))
        return Exit.DONE
    for one, said in list(zip(posed, answered.said, strict=True))[:_SHOWN]:
        print(f"{one.prompt}\n    answered {said!r}, right is {one.right!r}\n")
    print(f"step {trained.step}, {len(posed):,} questions, {given.shots} examples before each")
    for name, value in answered.values.items():
        print(f"  {name:20} {value:.4f}")
    print(f"  in {time.perf_counter() - started:.1f} s")
    return Exit.DONE


def _check(given: argparse.Namespace) -> None:
    """Raises: Refused for what contradicts itself, before anything is read."""
    if not given.answer and (given.shots or not given.tests):
        raise Refused(
            "--answer FIELD names the field of the right answer; only --tests judge alone"
        )
    of_programs = given.samples != 1 or given.k != "1" or given.temperature is not None
    if of_programs and not given.tests:
        raise Refused(
            "--samples, --k and --temperature are of programs: say which --tests they pass"
        )
    if given.tests and (given.choices or given.choices_field or given.scores):
        raise Refused("--tests runs what is written: --choices and --scores have no use beside it")
    if given.choices and given.choices_field:
        raise Refused("--choices and --choices-field exclude each other")
    if min(given.shots, given.limit) < 0 or given.max_new_tokens < 1:
        raise Refused("--shots and --limit are at least 0, --max-new-tokens at least 1")
    if given.shots and given.examples is None:
        raise Refused(
            "--shots needs --from FILE: examples of the questions' own file would be seen"
        )
    if given.write and given.write.exists():
        raise Refused(f"--write {given.write}: the file exists; name a new one")
    if given.choices and len(given.choices.split(",")) < 2:
        raise Refused(f"--choices {given.choices}: give two or more with commas between")
    try:
        re.compile(given.extract)
    except re.error as e:
        raise Refused(f"--extract {given.extract!r} is no regular expression: {e}") from e


def _questions(given: argparse.Namespace) -> Rows:
    rows = _rows(given.file)
    if not rows:
        raise Refused(f"{given.file} holds no question")
    return rows[: given.limit] if given.limit else rows


def _posed(given: argparse.Namespace, rows: Rows) -> list[Any]:
    from trainer.evals.prompts import Form, shots

    form = Form(
        template=_unescaped(given.template),
        answer=given.answer,
        choices=tuple(c.strip() for c in given.choices.split(",")) if given.choices else (),
        choices_field=given.choices_field,
    )
    before = shots(form, _rows(given.examples), given.shots, seed=given.seed) if given.shots else ""
    return [form.posed(fields, before=before, where=where) for fields, where in rows]


def _rows(path: Path) -> Rows:
    """Raises: DataError naming file and row."""
    from trainer.config.sections.examples import RecordsSource
    from trainer.data.formats.detect import format_of
    from trainer.data.formats.table import READERS

    source = RecordsSource(paths=(str(path),))
    if not path.is_file():
        raise DataError(f"{path} is no file")

    def stop(reason: str) -> None:
        raise DataError(reason)

    reader = READERS[format_of(source, [path])]
    return [(row.values, row.where) for row in reader(source, path, stop)]


def _chosen(
    given: argparse.Namespace, posed: Sequence[Any], model: Any, tokenizer: Any
) -> _Answered:
    """The likeliest choice, by the sum of its log-probabilities and by that over its bytes."""
    from trainer.evals.likelihood import continuation, log_likelihoods

    encode = _encode(tokenizer)
    asked = [continuation(encode, one.prompt, one.spelt(c)) for one in posed for c in one.choices]
    _check_length(model, [len(one.prompt) + len(one.answer) - 1 for one in asked])
    found = dict(log_likelihoods(model, asked, batch_size=_BATCH))
    said, all_nats, right, right_a_byte = [], [], 0, 0
    at = 0
    for one in posed:
        nats = [found[at + i] for i in range(len(one.choices))]
        at += len(one.choices)
        a_byte = [n / max(1, len(c.encode())) for n, c in zip(nats, one.choices, strict=True)]
        all_nats.append(dict(zip(one.choices, nats, strict=True)))
        said.append(one.choices[nats.index(max(nats))])
        right += said[-1] == one.right
        right_a_byte += one.choices[a_byte.index(max(a_byte))] == one.right
    number = len(posed)
    chance = sum(1 / len(one.choices) for one in posed) / number
    values = {"accuracy": right / number, "accuracy_per_byte": right_a_byte / number}
    return _Answered(said, values | {"chance": chance}, all_nats)


def _written(
    given: argparse.Namespace, posed: Sequence[Any], model: Any, tokenizer: Any
) -> _Answered:
    from trainer.evals.generated import answers, scores_named, values_of
    from trainer.evals.programs import cut

    scores = scores_named((given.scores or "exact_match").split(","))
    encode = _encode(tokenizer)
    prompts = [encode(one.prompt) for one in posed]
    _check_length(model, [len(prompt) + given.max_new_tokens for prompt in prompts])
    found = dict(answers(model, prompts, _decoding(given, tokenizer)))
    until = [_unescaped(end) for end in given.until or ["\n"]]
    said = []
    for number, one in enumerate(posed):
        text = tokenizer.decode_plain(found[number]).lstrip(" ")
        said.append(cut(text, until).strip())
        for score in scores.values():
            score.add(_extracted(said[-1], given.extract), [_extracted(one.right, given.extract)])
    return _Answered(said, values_of(scores), [{} for _ in said])


def _programmed(
    given: argparse.Namespace,
    task: Any,
    posed: Sequence[Any],
    model: Any,
    tokenizer: Any,
    step: int,
) -> Exit:
    """`task`: of trainer/commands/programs.py."""
    from trainer.commands.programs import scores_of, show, write_programs
    from trainer.evals.programs import cut

    started = time.perf_counter()
    encode = _encode(tokenizer)
    until = [_unescaped(end) for end in given.until or []]
    lengths = [len(encode(one.prompt)) + given.max_new_tokens for one in posed]
    _check_length(model, lengths)
    written = write_programs(
        task,
        [one.prompt for one in posed],
        model=model,
        encode=encode,
        decode=tokenizer.decode_plain,
        decoding=_decoding(given, tokenizer),
        finish=lambda text: _extracted(cut(text, until), given.extract),
        quiet=given.json,
    )
    if given.write:
        lines = (json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in written)
        given.write.write_text("".join(lines), encoding="utf-8")
    result = {"step": step, **scores_of(task, written)}
    if given.json:
        print(json.dumps(result))
    else:
        show(result, written, seconds=time.perf_counter() - started)
    return Exit.DONE


def _decoding(given: argparse.Namespace, tokenizer: Any) -> Any:
    from trainer.data.encodings.chat import ends_of_turns
    from trainer.evals.generated import Decoding

    return Decoding(
        max_new_tokens=given.max_new_tokens,
        batch_size=_BATCH,
        ends=ends_of_turns(tokenizer),
        padding_id=tokenizer.padding_id,
    )


def _check_length(model: Any, lengths: Sequence[int]) -> None:
    """Raises: Refused if a prompt and its answer need more positions than the model has."""
    most = getattr(model.hf.config, "max_position_embeddings", None)
    if most is not None and max(lengths) > most:
        raise Refused(
            f"the longest prompt and its answer need {max(lengths):,} positions, the model has "
            f"{most:,}; fewer --shots, a shorter template or smaller --max-new-tokens"
        )


def _encode(tokenizer: Any) -> Any:
    """Text -> ids with what stands before every text; never empty."""
    from trainer.data.encodings.seq2seq import beginning

    begin = beginning(tokenizer)

    def encode(text: str) -> list[int]:
        return [*begin, *tokenizer.encode(text, special=False).ids] or [tokenizer.padding_id]

    return encode


def _extracted(text: str, pattern: str) -> str:
    """The last match's first group (or all of it); the text itself where there is none."""
    if not pattern:
        return text
    matches = list(re.finditer(pattern, text))
    if not matches:
        return text
    groups = matches[-1].groups()
    return (groups[0] or "") if groups else matches[-1].group()


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


if __name__ == "__main__":
    raise SystemExit(main())
