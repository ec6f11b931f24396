"""The best of a sweep as a recipe that composes to what its trial was, and the table of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.compose import compose
from launch.settings.choices import Folders
from launch.sweep.beginning import begin
from launch.sweep.best import best_trials, write_recipes
from launch.sweep.folder import SweepFiles, carried, write_sweep
from launch.sweep.journal import Journal, Trial
from tests.helpers.sweeps import section
from trainer.errors import Exit, Refused


def finished(number: int, *values: float, overrides: tuple[str, ...] = ()) -> Trial:
    return Trial(number, {}, overrides, state="finished", values=values)


def test_one_metric_has_one_best_and_several_have_those_that_nobody_beats() -> None:
    trials = {n: finished(n, *v) for n, v in enumerate([(3.0, 1.0), (2.0, 2.0), (2.0, 3.0)], 1)}
    both = best_trials(trials, ["min", "max"])
    assert [one.number for one in both] == [3]
    assert [one.number for one in best_trials(trials, ["min", "min"])] == [1, 2]
    single = {n: finished(n, v) for n, v in enumerate([3.0, 2.0, 2.0], 1)}
    assert [one.number for one in best_trials(single, ["min"])] == [2]
    assert [one.number for one in best_trials(single, ["max"])] == [1]
    assert best_trials({}, ["min"]) == []


FIXED = ("experiment=stdlib_10m", "engine=zero1", "evals.sample_prompt='def f(x):'", "run.name=x")
CHOSEN = ("model=llama_debug", "optimizer.learning_rate=1e-05", "run.seed=7")


def test_a_recipe_composes_to_the_settings_of_its_trial(tmp_path: Path) -> None:
    best = [finished(4, 2.5, overrides=CHOSEN)]
    (path,) = write_recipes(
        tmp_path, "lr", best, fixed=FIXED, section=section(), folders=Folders.find()
    )
    assert path == tmp_path / "experiment" / "best-lr.yaml"
    assert "trial 4, eval_loss 2.5" in path.read_text()
    again = compose(["experiment=best-lr", "run.name=x"], config_dirs=[str(tmp_path)]).values
    assert again == compose([*FIXED, *CHOSEN]).values
    assert again["optimizer"]["learning_rate"] == 1e-5


def test_several_metrics_make_a_recipe_for_each_of_the_best(tmp_path: Path) -> None:
    two = section(metrics=["eval_loss", "mfu"], goals=["min", "max"])
    best = [finished(1, 2.0, 0.1, overrides=CHOSEN), finished(12, 3.0, 0.2, overrides=CHOSEN)]
    paths = write_recipes(tmp_path, "lr", best, fixed=(), section=two, folders=Folders.find())
    assert [path.name for path in paths] == ["best-lr-0001.yaml", "best-lr-0012.yaml"]


def swept(root: Path) -> SweepFiles:
    """A sweep of two trials: one finished, one failed."""
    files = SweepFiles(root / "lr")
    sweep = section(trials=2).model_dump(mode="json")
    write_sweep(files, {"sweep": sweep}, {"overrides": ["run.seed=1,2"], "config_dirs": []})
    journal = Journal(files.trials)
    journal.ask_for(2)
    for number, state, values, why in ((1, "finished", [2.5], ""), (2, "failed", [], "no disk")):
        facts = {"point": {"run.seed": number - 1}, "overrides": [f"run.seed={number}"]}
        journal.write("proposed", number, bracket=0, **facts)
        journal.write("started", number)
        ended = {"state": state, "values": values, "why": why, "rank_seconds": 1800.0}
        journal.write("ended", number, **ended)
    return files


def test_status_of_a_sweep_is_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(tmp_path)
    assert main(["status", "lr", "--root", str(tmp_path)]) == Exit.DONE
    text = capsys.readouterr().out
    assert "lr: finished; 2 of 2 trials (1 failed, 1 finished), 1 GPU-hours" in text
    assert "1 x no disk" in text
    main(["status", "lr", "--root", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "finished"
    assert [row["trial"] for row in found["best"]] == [1]
    assert found["rows"][0]["eval_loss"] == 2.5
    assert found["gpu_hours"] == 1.0


def test_stop_of_a_sweep_that_nobody_carries_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(tmp_path)
    assert main(["stop", "lr", "--root", str(tmp_path)]) == Exit.DONE
    assert capsys.readouterr().out == "lr is not running\n"


def test_stop_of_a_running_sweep_leaves_word_for_its_sweeper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = swept(tmp_path)
    with carried(files):
        assert main(["stop", "lr", "--root", str(tmp_path), "--no-wait"]) == Exit.DONE
        assert files.stop.exists()
    assert "asked to save and stop" in capsys.readouterr().out
    with carried(files):
        assert not files.stop.exists()  # it was for the one before


def test_status_of_all_names_sweeps_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(tmp_path)
    assert main(["status", "--root", str(tmp_path)]) == Exit.DONE
    assert "sweep lr: finished; 2 of 2 trials" in capsys.readouterr().out


def test_a_sweep_has_one_sweeper(tmp_path: Path) -> None:
    files = swept(tmp_path)
    with carried(files), pytest.raises(Refused, match="lr is running already"), carried(files):
        pass
    with carried(files):
        pass


_RATES = ("optimizer.learning_rate=1e-4,1e-3",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.seed=1"], "nothing to search"),
        (["run.sede=1,2"], "did you mean run.seed"),
        (["run.seed=1,2", "optimizer.learning_rate=-1,1e-3"], "(with run.seed=1 optimizer"),
        (["run.seed=1,2", "sweep.metrics=[los]"], "nothing reports 'los'"),
        (["run.seed=1,2", "evals=none"], "makes no evaluation"),
        (["run.seed=1,2", "sweep=asha", "steps.eval_every=0"], "evaluations on the way"),
        (["run.seed=1,2", "sweep=asha", "steps.total=40"], "steps.eval_every=50"),
        (["run.seed=1,2", "sweep=asha", "steps.total=40", "sweep.metrics=[loss]"], "first rung is"),
        (["run.seed=1,2", "sweep=asha", "steps.epochs=2", "sweep.metrics=[loss]"], "an epoch has"),
        (["run.seed=1,2", "sweep=halving", "sweep.generation=3"], "the trials of a bracket first"),
        (["run.seed=1,2", "sweep=pbt"], "and not run.seed (data order, dropout"),
        ([*_RATES, "sweep=pbt", "sweep.trials=3"], "of 3 trials the worst 1/4 are none"),
        ([*_RATES, "sweep=pbt", "sweep.sampler=tpe"], "tpe learns from whole trials"),
        (["run.seed=1,2", "sweep.budget.gpu_hours=0.001"], "one trial of 2 ranks may take"),
        (["run.seed=1,2", "launch=sky"], "keeps its run folders elsewhere"),
        (["run.seed=1,2", "launch=ssh", "launch.hosts=[a]", "sweep.concurrency=2"], "at once"),
        (["run.seed=range(1,20000)", "sweep=grid"], "10,000 is the most"),
        (["run.seed=1,2", "sweep.trails=3"], "did you mean sweep.trials"),
        (["nothing-here"], "there is no sweep 'nothing-here'"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    root = [] if "=" not in words[0] else [f"run.root={tmp_path}"]
    assert main(["sweep", *words, *root]) == Exit.REFUSED
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_file_in_the_page_about_sweeps_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text("utf-8")
    (tmp_path / "sweep").mkdir()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    words = ["--config-dir", str(tmp_path), "sweep=mine", "sweep.sampler=random"]
    assert main(["sweep", *words, f"run.root={tmp_path}", "--dry-run", "--json"]) == Exit.DONE
    settings = [row["settings"] for row in json.loads(capsys.readouterr().out)]
    assert any("optimizer.momentum=" in one for one in settings)
    assert all(("momentum" in one) == ("=sgd" in one) for one in settings)
    assert all(one.count("batch.global_batch_size=") == 1 for one in settings)


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(tmp_path)
    words = ["sweep", "run.seed=1,2", "sweep=grid", f"run.root={tmp_path}"]
    assert main([*words, "sweep.name=lr", "--dry-run"]) == Exit.REFUSED
    assert "is another sweep" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    assert main([*words, "sweep.name=other", "--dry-run"]) == Exit.REFUSED
    assert "is a run, not a sweep" in capsys.readouterr().err


def test_a_population_does_not_grow_and_its_trials_are_a_group(tmp_path: Path) -> None:
    words = [*_RATES, "sweep=pbt", f"run.root={tmp_path}", "sweep.name=lr"]
    begun = begin(words)
    write_sweep(begun.files, begun.identity, begun.command)
    begin([*words, "sweep.concurrency=2"])
    assert begun.corner.observers.wandb.group == "lr"
    mine = begin([*words, "observers.wandb.group=mine"])
    assert mine.corner.observers.wandb.group == "mine"
    with pytest.raises(Refused, match=r"sweep\.trials differs"):
        begin([*words, "sweep.trials=9"])


def test_dry_run_lists_the_trials_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "run.seed=1,2", "model=llama_debug,llama_10m", f"run.root={tmp_path}"]
    assert main([*words, "sweep=grid", "--dry-run", "--json"]) == Exit.DONE
    rows = json.loads(capsys.readouterr().out)
    assert [row["settings"] for row in rows][:2] == [
        "run.seed=1 model=llama_debug",
        "run.seed=1 model=llama_10m",
    ]
    assert len(rows) == 4
    assert not list(tmp_path.iterdir())
