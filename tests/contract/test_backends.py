"""What every backend promises, on the same cases. A backend joins by a line in CASES."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.backends.table import backend_of
from launch.base import Backend, Submission
from launch.dry_run import DryRun, as_json, as_text
from launch.many import start_many
from launch.settings.several import Member
from launch.start import start
from tests.helpers.cloud import KUBERAY, RAY_UP, SKY, plan_for
from tests.helpers.configs import config
from tests.helpers.hostile_words import WORDS
from trainer.errors import LonghaulError, Refused
from trainer.plan import RunPlan


@dataclass(frozen=True)
class Case:
    """`here`: settings for which it could start. `broken`: added, it cannot, whatever is installed;
    with nothing on PATH neither. `many`: 2,048 nodes of 8 ranks."""

    here: tuple[str, ...]
    broken: tuple[str, ...] = ()
    many: tuple[str, ...] = ("resources.nodes=2048", "resources.ranks_per_node=8")


CASES = {
    "local": Case((), broken=("resources.nodes=2", "batch.micro_batch_size=4"), many=()),
    "slurm": Case(("launch=slurm",)),
    "ssh": Case(("launch=ssh", "launch.hosts=[node1]")),
    "ray": Case(("launch=ray",)),
    "sky": Case(SKY),
    "kuberay": Case(KUBERAY),
    "ray_up": Case(RAY_UP),
}
each = pytest.mark.parametrize("name", CASES)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SECRET = "wandb-key-that-nobody-may-see"


@pytest.fixture
def rendered(name: str) -> Callable[..., tuple[RunPlan, Submission]]:
    def render(*more: str, run_folder: str = "runs/first-run") -> tuple[RunPlan, Submission]:
        plan = plan_for(config(*CASES[name].here, *more))
        return plan, _backend(name).render(plan, run_folder=run_folder)

    return render


Render = Callable[..., tuple[RunPlan, Submission]]


@each
def test_rendering_is_pure(
    rendered: Render, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _, first = rendered()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    _, second = rendered()
    assert first == second
    assert not list(tmp_path.iterdir())


@each
def test_its_name_is_the_kind_it_stands_for(name: str) -> None:
    assert _backend(name).name == name


@each
def test_all_that_would_be_written_and_run_is_shown(rendered: Render) -> None:
    plan, submission = rendered()
    what = DryRun(plan, submission, "runs/first-run", True, 0, False)
    text, value = as_text(what), json.loads(as_json(what))["submission"]
    for argv in (submission.argv, *submission.then):
        assert shlex.join(argv) in text
    for file, contents in submission.files.items():
        assert file in text
        assert all(line.rstrip() in text for line in contents.splitlines())
        assert value["files"][file] == contents
    assert [value["argv"], *value["then"]] == [list(a) for a in (submission.argv, *submission.then)]


@each
def test_no_secret_of_the_environment_is_rendered(
    rendered: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(variable, _SECRET)
    plan, submission = rendered()
    what = DryRun(plan, submission, "runs/first-run", True, 0, False)
    assert _SECRET not in repr(submission)
    assert _SECRET not in as_text(what) + as_json(what)


@each
def test_nothing_is_written_where_it_cannot_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setenv("PATH", str(tmp_path / "no-tools"))
    wanted = config(*case.here, *case.broken)
    run = wanted.run.model_copy(update={"root": str(tmp_path / "runs")})
    wanted = wanted.model_copy(update={"run": run})
    remote = wanted.checkpoint.remote.model_copy(update={"url": None})  # else it is looked at first
    checkpoint = wanted.checkpoint.model_copy(update={"remote": remote})
    wanted = wanted.model_copy(update={"checkpoint": checkpoint})
    with pytest.raises(Refused) as refused:
        start(wanted)
    assert refused.value.exit_code == 2
    assert str(refused.value)
    run = run.model_copy(update={"name": "another"})
    several = [Member(wanted, ("a=1",)), Member(wanted.model_copy(update={"run": run}), ("a=2",))]
    with pytest.raises(Refused):
        start_many(several, name="both")
    assert not list(tmp_path.iterdir())


@each
def test_a_hostile_run_folder_arrives_or_is_refused(name: str, rendered: Render) -> None:
    plain = _structure(rendered(run_folder="runs/plain")[1])
    for word in WORDS:
        folder = f"/scratch/{word}/first-run"
        try:
            _, submission = rendered(run_folder=folder)
        except LonghaulError:
            continue
        assert _structure(submission) == plain, word
        inside = [_mentions(argv, folder) for argv in (submission.argv, *submission.then)]
        assert any(inside), word


@each
def test_a_hostile_value_changes_nothing_but_itself(name: str, rendered: Render) -> None:
    """A setting that takes any text, with what some layer could take for something else."""
    plain = _structure(rendered()[1])
    for word in WORDS:
        plan, _ = rendered()
        evals = plan.config.evals.model_copy(update={"sample_prompt": word})
        changed = plan.config.model_copy(update={"evals": evals})
        plan = plan.model_copy(update={"config": changed})
        assert _structure(_backend(name).render(plan, run_folder="runs/first-run")) == plain, word


@each
def test_sixteen_thousand_ranks_are_rendered_in_a_moment(name: str) -> None:
    case = CASES[name]
    batch = ("batch.global_batch_size=32768", "batch.micro_batch_size=2") if case.many else ()
    plan = plan_for(config(*case.here, *case.many, *batch))
    began = time.process_time()
    submission = _backend(name).render(plan, run_folder="runs/first-run")
    assert time.process_time() - began < 5.0
    assert sum(len(text) for text in submission.files.values()) < 100_000


# --- reading what was rendered -----------------------------------------------------------------


def _backend(name: str) -> Backend:
    return backend_of(name)


def _mentions(argv: tuple[str, ...], folder: str) -> bool:
    """Whether one word is the folder, or a path below it."""
    return any(word == folder or word.startswith(f"{folder}/") for word in argv)


def _structure(submission: Submission) -> Any:
    """Everything but the texts themselves: how many words, lines, and which keys."""
    commands = [len(argv) for argv in (submission.argv, *submission.then)]
    files = {name: _shape(name, text) for name, text in submission.files.items()}
    return commands, files, sorted(submission.env)


def _shape(name: str, text: str) -> Any:
    if name.endswith((".yaml", ".yml")):
        return list(_keys(yaml.load(text, Loader=_LOADER)))
    if name.endswith(".json"):
        return list(_keys(json.loads(text)))
    return len(text.splitlines())


def _keys(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _keys(inner, f"{prefix}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _keys(inner, f"{prefix}.{i}")
    else:
        yield f"{prefix}:{type(value).__name__}"


def test_no_case_is_forgotten() -> None:
    from launch.backends.table import kinds

    assert set(CASES) == set(kinds())
