"""Several runs from one command line: which they are, what they are called, what goes together."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch.commands.train import main
from launch.compose import combinations
from launch.run.liveness import own_mark, write_mark
from launch.run.run_folder import create, new_attempt
from launch.settings.several import members, name_of
from launch.slurm.array import groups, link, links_folder, render
from launch.slurm.place import job_of
from launch.slurm.verdict import JobFacts
from tests.helpers.cloud import plan_for
from trainer.errors import ConfigError, Refused
from trainer.plan import RunPlan


def asked(*overrides: str) -> list[list[str]]:
    return [[text for text, _ in one] for one in combinations(overrides)]


def plans(*overrides: str) -> list[RunPlan]:
    found, _ = members(["launch=slurm", "batch.micro_batch_size=1", *overrides])
    return [plan_for(one.config) for one in found]


def test_every_combination_is_a_run_and_the_last_value_varies_fastest() -> None:
    assert asked("a=1,2", "b=x", "m=p,q") == [
        ["a=1", "b=x", "m=p"],
        ["a=1", "b=x", "m=q"],
        ["a=2", "b=x", "m=p"],
        ["a=2", "b=x", "m=q"],
    ]
    assert asked("a=range(1,4)") == [["a=1"], ["a=2"], ["a=3"]]
    assert asked("a=[1,2],[3]") == [["a=[1,2]"], ["a=[3]"]]
    assert asked("a=[1,2]") == [["a=[1,2]"]]


@pytest.mark.parametrize("text", ["a=interval(0,1)", "model=glob(*)"])
def test_values_that_cannot_be_counted_up_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="several runs need each by name"):
        combinations([text])


def test_names_say_what_is_special_and_are_the_same_the_next_time() -> None:
    found, common = members(["optimizer.learning_rate=1e-3,3e-4", "model=llama_debug,llama_125m"])
    assert common == "first-run"
    assert [one.name for one in found] == [
        "first-run-learning_rate-0.001-model-llama_debug",
        "first-run-learning_rate-0.001-model-llama_125m",
        "first-run-learning_rate-0.0003-model-llama_debug",
        "first-run-learning_rate-0.0003-model-llama_125m",
    ]
    assert [one.config.optimizer.learning_rate for one in found] == [1e-3, 1e-3, 3e-4, 3e-4]
    assert members(["run.name=a,b"])[0][1].name == "b"


def test_values_that_no_folder_can_be_called_by_get_a_digest_of_their_own() -> None:
    one = name_of("run", ["evals.sample_prompt='two words'"])
    two = name_of("run", ["evals.sample_prompt='two_words'"])
    long = name_of("run", [f"data.x={'y' * 90}"])
    assert one != two
    assert all(len(name) <= 64 and "/" not in name and "'" not in name for name in (one, two, long))
    assert name_of("run", ["a=../../etc"]).startswith("run-a-.._.._etc-")


def test_problems_of_all_runs_are_told_at_once_and_whose_they_are() -> None:
    with pytest.raises(ConfigError) as caught:
        members(["optimizer.learning_rate=-1,1e-3,-2", "stesp.total=3"])
    text = str(caught.value)
    assert "3 problems" in text
    assert text.count("stesp") == 1
    assert "(with optimizer.learning_rate=-1" in text


def test_what_is_carried_already_is_left_alone_unless_it_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", "--dry-run", "resources.device=cpu", "run.seed=1,2"]
    for seed in (1, 2):
        config = {"run": {"name": f"first-run-seed-{seed}"}}
        run = create(tmp_path / "runs", config=config, frozen_hash="abc")
        write_mark(new_attempt(run).agent, own_mark())
        if seed == 1:
            assert main(words) == 0
    said = capsys.readouterr()
    assert "left alone: run first-run-seed-1 is running already (attempt 1, process" in said.err
    assert [line.split()[0] for line in said.out.splitlines()[1:2]] == ["first-run-seed-2"]
    with pytest.raises(Refused, match="first-run-seed-1 is running already") as caught:
        main(words)
    assert "first-run-seed-2 is running already" in str(caught.value)


def test_one_value_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="would both be the run first-run-seed-1"):
        members(["run.seed=1,1"])


def test_runs_of_one_shape_go_together_and_others_alone() -> None:
    found = plans("optimizer.learning_rate=1e-3,3e-4", "resources.nodes=1,2")
    assert groups(found) == [[0, 2], [1, 3]]
    assert groups(plans("run.seed=1,2", "launch.chain=2")) == [[0], [1]]
    assert groups(plans("launch.environment=[A],[B]")) == [[0], [1]]
    assert [len(one) for one in groups([found[0]] * 1500)] == [1000, 500]


def test_a_run_root_with_quotes_reaches_the_array_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "it's $(here) 50%"
    found = plans("run.seed=1,2", f'run.root="{root}"')
    text = render(found, scripts=[f"{root}/a.sbatch", f"{root}/b.sbatch"], name="both")
    assert f"  {shlex.quote(f'{root}/a.sbatch')}\n" in text
    assert "50%%/.arrays" in text


def test_links_lead_to_the_runs_wherever_the_root_is_moved(tmp_path: Path) -> None:
    found = plans("run.seed=1,2", f"run.root={tmp_path}")
    for plan in found:
        (tmp_path / plan.config.run.name).mkdir()
    link(found)
    link(found)  # an attempt that was not taken, and is made again
    folder = Path(links_folder(found[0]))
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    folder = moved / folder.relative_to(tmp_path)
    targets = [(folder / str(k)).resolve() for k in (0, 1)]
    assert targets == [moved / "first-run-seed-1", moved / "first-run-seed-2"]


def test_a_task_of_an_array_is_known_by_both_its_numbers() -> None:
    env = {"SLURM_JOB_ID": "124", "SLURM_ARRAY_JOB_ID": "123", "SLURM_ARRAY_TASK_ID": "0"}
    assert job_of(env) == JobFacts.from_env(env).job == "123_0"
    assert job_of({"SLURM_JOB_ID": "124"}) == "124"


def test_runs_that_would_meet_on_the_same_hosts_are_refused(tmp_path: Path) -> None:
    words = ["-m", "launch=ssh", "launch.hosts=[a]", f"run.root={tmp_path}", "run.seed=1,2"]
    with pytest.raises(ConfigError, match=r"launch\.foreground=true"):
        main(words)
    assert not list(tmp_path.iterdir())


def test_what_any_run_cannot_do_is_said_before_the_first_begins(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing was started") as caught:
        main(["-m", f"run.root={tmp_path}", "resources.nodes=1,2", "batch.micro_batch_size=4"])
    assert "first-run-nodes-2: 1 problem" in str(caught.value)
    assert not list(tmp_path.iterdir())
