"""What a trained model answers to held-out examples, held against transformers one by one."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from itertools import combinations, product
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import task_cases
from tests.helpers.trained_run import trained_by
from trainer.batch import IGNORED, ExampleBatch
from trainer.commands import ask, evaluate
from trainer.data.held_out_groups import held_out_groups
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import Exit
from trainer.evals.asked import Asked, asked_of
from trainer.evals.generated import Decoding, answers
from trainer.export.trained import load_model, open_trained
from trainer.records.run_files import RunFiles

_TEMPLATE = "{source}\\n"  # as task=seq2seq asks
_PLAIN = (
    "engine=plain",
    "resources.ranks_per_node=1",
    "optimizer=adamw",
    "optimizer.learning_rate=0.01",
    "steps.total=30",
    "observers.tensorboard.enabled=false",
)


def _answer_in_three(draw: random.Random, number: int) -> dict[str, Any]:
    """Sources of many lengths, one of two targets, which the source's first word decides."""
    first, target = draw.choice([("Acme", "the engine"), ("Berlin", "a house")])
    source = f"{first} {task_cases.words(draw, 9)} {number}"
    return {"source": source, "target": target, "about": first if number % 4 else None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """A decoder that has learnt which of two answers to give; rows of several examples."""
    folder = tmp_path_factory.mktemp("answers")
    case = task_cases.Case(
        ("task=seq2seq", "task.target_tokens=12", "data.packing=true"),
        _answer_in_three,
        task_cases.DECODER,
        task_cases.gpt_folder,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(task_cases.CASES, "answers", case)
        plan = task_cases.case_plan(folder, "answers", _PLAIN, count=80)
    return trained_by(plan, folder / "runs" / "answers")


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    capsys.readouterr()
    assert evaluate.main(list(argv)) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


def test_the_command_writes_and_scores_answers(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(run.root), "--answers", "9", "--scores", "exact_match,bleu,chrf,rouge", "--json"]
    result = json.loads(said(capsys, *argv, "--write", str(tmp_path / "said.jsonl")))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(rows) == result["answers"] == 9
    assert {row["references"][0] for row in rows} == {"the engine", "a house"}
    right = [row["answer"] == row["references"][0] for row in rows]
    assert result["exact_match"] == sum(right) / 9
    assert sum(right) >= 7, rows  # it has learnt the task: chance is a half
    assert result["rouge1"] > 0.7
    shown = said(capsys, str(run.root), "--answers", "2")
    assert "asked     <s>" in shown
    assert "answered  " in shown
    assert "step 30, 2 answers" in shown


def test_a_batch_answers_as_each_prompt_alone(run: RunFiles) -> None:
    """Prompts of other lengths beside it are out of its sight; the end ends an answer."""
    trained = open_trained(run.root)
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    draw = random.Random(7)
    prompts = [[draw.randrange(4, 300) for _ in range(n)] for n in (3, 17, 9, 30, 5)]
    how = Decoding(max_new_tokens=12, batch_size=3, ends={1}, padding_id=1)
    found = dict(answers(model, prompts, how))
    assert sorted(found) == list(range(5))
    for number, prompt in enumerate(prompts):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12:
            positions = torch.arange(len(ids)).unsqueeze(0)
            with torch.no_grad():
                best = int(model.logits(torch.tensor([ids]), positions)[0, -1].argmax())
            if best == 1:
                break
            ids.append(best)
        assert found[number] == ids[len(prompt) :]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scores", "bleu,charm"], "--scores charm: there is bleu, chrf, rouge, exact_match"),
        (["--beams", "0"], "--beams and --max-new-tokens at least 1"),
        (["--max-new-tokens", "100000"], "no prompt leaves room for 100000 new tokens"),
        (["--write", "{run}/run.json"], "the file exists; name a new one"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    argv: list[str], message: str, run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(run=run.root) for word in argv]
    assert message in said(capsys, str(run.root), "--answers", "3", *words, code=Exit.REFUSED)


def _batch(rows: list[list[tuple[int, int]]], text: list[Any]) -> ExampleBatch:
    """Rows of (input, label), examples of four positions each."""
    inputs = torch.tensor([[i for i, _ in row] for row in rows])
    labels = torch.tensor([[label for _, label in row] for row in rows])
    documents = torch.arange(inputs.shape[1]).div(4, rounding_mode="floor").add(1).expand_as(inputs)
    fields = {"inputs_RT": inputs, "labels_RT": labels, "documents_RT": documents}
    return ExampleBatch(fields, (0,), 1, 8, text)


def test_the_last_answer_of_every_example_is_asked_for() -> None:
    none = IGNORED
    two_turns = [(1, 2), (2, none), (3, 4), (4, 5)]
    nothing = [(6, none), (7, none), (8, none), (9, none)]
    batch = _batch([two_turns + nothing], [{"messages": []}, {"references": ["x"]}])
    spelt = iter([["4 5"]])

    def decode(ids: Any) -> str:
        assert next(spelt) == [" ".join(map(str, ids))]
        return "four five"

    found: Iterator[Asked] = asked_of([batch], decode=decode)
    assert list(found) == [Asked((1, 2, 3), ("four five",))]
    told = _batch([two_turns], [{"references": ["a", "b"]}])
    assert list(asked_of([told], decode=decode)) == [Asked((1, 2, 3), ("a", "b"))]


# --- questions of one's own -----------------------------------------------------------------------


def asked(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    capsys.readouterr()
    assert ask.main(list(argv)) == code
    shown = capsys.readouterr()
    return shown.err if code else shown.out


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(11)
    rows = [_answer_in_three(draw, number) for number in range(100, 112)]
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_the_likeliest_choice_is_the_answer(
    run: RunFiles, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held against log-probabilities from all logits, a prompt and a choice at a time."""
    argv = [str(run.root), str(questions), "--template", _TEMPLATE, "--answer", "target"]
    choices = ("the engine", "a house")
    argv += ["--choices", ",".join(choices), "--write", str(tmp_path / "said.jsonl"), "--json"]
    result = json.loads(asked(capsys, *argv))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    trained = open_trained(run.root)
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = TaskTokenizer.open(Path(trained.plan.stores[0].path))
    for row in rows:
        nats = []
        for choice in choices:
            whole = tokenizer.encode(f"{row['prompt']}{choice}").ids
            before = len(tokenizer.encode(row["prompt"]).ids)
            positions = torch.arange(len(whole)).unsqueeze(0)
            with torch.no_grad():
                logits = model.logits(torch.tensor([whole]), positions)[0].log_softmax(-1)
            nats.append(sum(float(logits[t - 1, whole[t]]) for t in range(before, len(whole))))
        assert list(row["nats"].values()) == pytest.approx(nats, rel=1e-4)
        assert row["answer"] == choices[nats.index(max(nats))]
    right = sum(row["answer"] == row["right"] for row in rows)
    assert (result["accuracy"], result["chance"]) == (right / 12, 0.5)
    assert right >= 9


def test_written_answers_are_cut_extracted_and_scored(
    run: RunFiles, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(run.root), str(questions), "--template", _TEMPLATE, "--answer", "target"]
    found = json.loads(asked(capsys, *argv, "--until", "", "--limit", "6", "--json"))
    assert found["questions"] == 6
    last_word = ["--extract", r"(\w+)$", "--until", " "]  # cut after the first word
    cut = json.loads(asked(capsys, *argv, *last_word, "--json"))
    assert cut["exact_match"] == 0.0  # "the" against "engine"
    shots = ["--shots", "2", "--from", str(questions), "--limit", "2"]
    shown = asked(capsys, *argv, *shots)
    assert "2 questions, 2 examples before each" in shown
    assert shown.count("answered '") == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--answer", "gold"], "questions.jsonl row 1 has no field 'gold'"),
        (["--choices", "yes"], "--choices yes: give two or more"),
        (["--choices", "yes,no"], "is none of the choices ['yes', 'no']"),
        (["--shots", "2"], "--shots needs --from FILE"),
        (["--extract", "("], "is no regular expression"),
        (["--max-new-tokens", "100000"], "positions, the model has"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    argv: list[str],
    message: str,
    run: RunFiles,
    questions: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(run.root), str(questions), "--template", _TEMPLATE, "--answer", "target", *argv]
    capsys.readouterr()
    assert ask.main(words) in (Exit.REFUSED, Exit.STOP)
    assert message in capsys.readouterr().err


# --- answers that are programs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a right answer says is tested by a program around it."""
    asked = ["unshare", "-m", "-p", "-f", "-n", "true"]
    if os.geteuid() != 0:
        asked[1:1] = ["-U", "-r"]
    tried = subprocess.run(asked, check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this kernel permits no namespaces: {tried.stderr.strip()}")
    draw = random.Random(13)
    rows = [_answer_in_three(draw, number) for number in range(200, 204)]
    for row in rows:
        row["tests"] = [f"assert said == {row['target']!r}", "assert len(said) > 3"]
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_programs_are_drawn_run_and_counted(
    run: RunFiles, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pass@k against all ways to draw k of the programs, verdicts against the texts themselves."""
    argv = [str(run.root), str(problems), "--template", _TEMPLATE, "--answer", "target"]
    argv += ["--tests", "tests", "--program", "said = '''{answer}'''.strip()\\n{tests}", "--json"]
    argv += ["--samples", "5", "--k", "3,1", "--temperature", "0.8", "--top-p", "1"]
    argv += ["--max-new-tokens", "6"]
    result = json.loads(asked(capsys, *argv, "--write", str(tmp_path / "all.jsonl")))
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["sample"]) for row in rows] == list(product(range(4), range(5)))
    targets = [json.loads(line)["target"] for line in problems.read_text().splitlines()]
    for row in rows:
        assert row["passed"] == (row["answer"].strip() == targets[row["problem"]])
        assert row["passed"] or row["said"]
    passed = [[row["passed"] for row in rows if row["problem"] == p] for p in range(4)]
    for k in (1, 3):
        ways = [sum(map(any, combinations(one, k))) / comb(5, k) for one in passed]
        assert result[f"pass@{k}"] == pytest.approx(sum(ways) / 4)
    assert 0 < result["pass@1"] < 1, rows  # else nothing was told apart
    assert result["solved"] == sum(map(any, passed))
    assert sum(result["programs"].values()) == 20
    # Those of the first problems alone are the same, whatever is drawn beside them.
    fewer = [*argv, "--limit", "2", "--samples", "3", "--write", str(tmp_path / "fewer.jsonl")]
    asked(capsys, *fewer)
    again = [json.loads(line) for line in (tmp_path / "fewer.jsonl").read_text().splitlines()]
    assert again == [row for row in rows if row["problem"] < 2 and row["sample"] < 3]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tests", "proof"], "problems.jsonl row 1 has no field 'proof'"),
        (["--tests", "tests", "--k", "2"], "--k 2 needs as many programs a problem: --samples 2"),
        (["--tests", "tests", "--samples", "2", "--temperature", "0"], "the same program 2 times"),
        (["--tests", "tests", "--choices", "a,b"], "--choices and --scores have no use beside it"),
        (["--tests", "tests", "--memory-mb", "8"], "even an empty one does not pass"),
        (["--tests", "tests", "--answer", "target"], "its own target does not pass its tests"),
        (["--samples", "2"], "--answer FIELD names the field of the right answer"),
        (["--samples", "2", "--answer", "target"], "say which --tests they pass"),
        (["--tests", "tests", "--top-p", "0"], "--top-p above 0 and at most 1"),
    ],
)
def test_what_cannot_be_tested_is_refused(
    argv: list[str], message: str, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it before a model is looked for: there is no run of this name."""
    capsys.readouterr()
    code = ask.main(["no-run", str(problems), "--template", _TEMPLATE, *argv])
    assert code in (Exit.REFUSED, Exit.STOP)
    assert message in capsys.readouterr().err


def test_groups_are_scored_apart_and_together_make_the_whole(
    run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of several examples, of several groups; one in four is of none."""
    whole = json.loads(said(capsys, str(run.root), "--rows", "50", "--by", "about", "--json"))
    groups = whole["groups"]
    assert list(groups) == ["(none)", "Acme", "Berlin"]
    terms = {group: scores["terms"] for group, scores in groups.items()}
    assert sum(terms.values()) == whole["terms"]
    for name in ("loss", "token_accuracy"):
        mean = sum(terms[group] * groups[group][name] for group in groups) / whole["terms"]
        assert mean == pytest.approx(whole[name], rel=1e-5)
        values = [groups[group][name] for group in groups]
        assert whole["gaps"][name] == pytest.approx(max(values) - min(values))
    shown = said(capsys, str(run.root), "--rows", "50", "--by", "about")
    assert "by about" in shown
    assert f"Berlin{int(terms['Berlin']):>17,}" in shown


def test_a_group_holds_the_examples_that_its_file_says(run: RunFiles) -> None:
    plan = open_trained(run.root).plan
    tokenizer = TaskTokenizer.open(Path(plan.stores[0].path))
    found = held_out_groups(plan, "about", rows=50)
    for group in ("Acme", "Berlin"):
        batches = [one for batch in found[group] for one in batch.text]
        prompts = [
            tokenizer.decode_plain([t for t in row.tolist() if t != tokenizer.padding_id])
            for batch in found[group]
            for row in batch.fields["inputs_RT"]
        ]
        spoken = [prompt for prompt in prompts if prompt.strip()]
        assert len(spoken) == len(batches) > 0
        assert all(prompt.lstrip().startswith(group) for prompt in spoken)


def test_what_makes_no_groups_is_refused(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(run.root), "--by"]
    assert "has no column 'gender'" in said(capsys, *asked, "gender", code=Exit.STOP)
    data: Any = open_trained(run.root).plan.config.data
    path = Path(data.sources["examples"].paths[0])
    whole = path.read_text("utf-8")
    try:
        path.write_text("".join(whole.splitlines(keepends=True)[:3]), "utf-8")
        assert "is not there any more" in said(capsys, *asked, "about", code=Exit.STOP)
    finally:
        path.write_text(whole, "utf-8")


def test_answers_with_words_of_a_list_are_counted_and_shown(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# mine\nmachines\tENGINE\nmachines\tmotor\nplaces\tre:h[aou]+se\n")
    argv = [str(run.root), "--answers", "9", "--scores", "exact_match", "--words", str(words)]
    result = json.loads(said(capsys, *argv, "--json", "--write", str(tmp_path / "said.jsonl")))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    engines, houses = ([word in row["answer"] for row in rows] for word in ("engine", "house"))
    assert result["flagged/machines"] == sum(engines) / 9 > 0
    assert result["flagged/places"] == sum(houses) / 9 > 0
    assert result["flagged"] == sum(a or b for a, b in zip(engines, houses, strict=True)) / 9
    for row, has_engine in zip(rows, engines, strict=True):
        assert row["flagged"].get("machines") == (["engine"] if has_engine else None)
    assert "spellings of the list alone" in said(capsys, *argv)
    for text, what in (("no tab here\n", "row 1 is no category"), ("a\tre:(\n", "no regular")):
        words.write_text(text)
        assert what in said(capsys, *argv, code=Exit.REFUSED)
    argv.remove("--answers")
    argv.remove("9")
    assert "--words looks at answers" in said(capsys, *argv, code=Exit.REFUSED)
