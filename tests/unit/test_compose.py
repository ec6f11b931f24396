"""conf/ and overrides -> a mapping, or every problem of the command line at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource

from launch.compose import compose, why
from launch.settings.asked import completed
from launch.settings.choices import Folders, conf_folder
from launch.settings.conf_source import ConfSource
from trainer.errors import ConfigError, Problem, Refused

MODELS = Folders.find().choices("model")


def problems(*overrides: str, config_dirs: tuple[str, ...] = ()) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, config_dirs=config_dirs)
    return list(caught.value.problems)


def test_the_default_run_is_the_one_of_the_readme() -> None:
    values = compose([]).values
    assert values["run"]["name"] == "first-run"
    assert values["engine"]["stage"] == 2
    assert values["data"]["sources"] == {"stdlib": {"kind": "stdlib", "weight": 1.0}}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_experiment_may_be_added_with_or_without_a_plus(prefix: str) -> None:
    values = compose([f"{prefix}experiment=stdlib_10m"]).values
    assert values["run"]["name"] == "stdlib-10m"
    assert values["data"]["tokenizer"]["vocab_size"] == 16_384


def test_the_command_line_wins_over_an_experiment() -> None:
    values = compose(["experiment=stdlib_10m", "run.name=mine", "model=llama_debug"]).values
    assert values["run"]["name"] == "mine"
    assert values["model"]["hidden_size"] == 256


def test_a_wrong_choice_names_the_nearest() -> None:
    [problem] = problems("model=llama_debgu")
    assert problem.where == "model"
    assert problem.what.startswith(f"there is no choice 'llama_debgu'; there is {MODELS[0]}, ")
    assert problem.fix == "model=llama_debug"


MISSPELT = {
    "engin=zero2": ("engine", "engine=zero2"),
    "eng=zero2": ("engine", "engine=zero2"),
    "optimiser=adam": ("optimizer", "optimizer=adamw"),
    "modle=llama_debgu": ("model", "model=llama_debug"),
    "scheduler=cosine": ("schedule", "schedule=cosine"),
    "data/tokeniser=pretrained": ("data/tokenizer", "data/tokenizer=pretrained"),
    "data.tokeniser=pretrained": ("data/tokenizer", "data/tokenizer=pretrained"),
}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_misspelt_group_is_no_setting(prefix: str) -> None:
    found = problems(*(prefix + typed for typed in MISSPELT))
    for problem, (typed, (meant, fix)) in zip(found, MISSPELT.items(), strict=True):
        key = typed.partition("=")[0]
        assert problem.where == key
        assert problem.what == f"there is no group of choices {key!r}; did you mean {meant}?"
        assert problem.fix == fix


def test_what_is_no_choice_of_a_group_stays_a_setting() -> None:
    compose(["data.store_root=pretrained", "run.name=engine", "engin=2"])


def test_a_sweep_is_refused_in_clear_words() -> None:
    values = ["1e-3,1e-4", "choice(1,2)", "range(1,4)", "interval(0,1)"]
    found = problems(*(f"optimizer.learning_rate={value}" for value in values))
    for problem, value in zip(found, values, strict=True):
        assert f"{value} asks for several runs; one run takes one value" in problem.what
        assert problem.fix.startswith("optimizer.learning_rate=")


# typed -> where, what (a part of it), fix
REFUSED = {
    "data.tokenizer=pretrained": (
        "data.tokenizer", "is a group of choices, written with a slash",
        "data/tokenizer=pretrained",
    ),
    "engine=zero1,zero2": ("engine", "asks for several runs", "engine=zero1"),
    "steps.total": (
        "'steps.total'", "is no setting; settings are written key=value", "steps.total=...",
    ),
    "=3": ("'=3'", "is no setting; settings are written key=value", "steps.total=3"),
    "data.sources.files.paths=[a b": (
        "data.sources.files.paths", "cannot read the value",
        """'data.sources.files.paths=["a b"]'""",
    ),
    "run.name=[a": ("run.name", "cannot read the value", "run.name=a"),
    "hydra.run.dir=/tmp/x": ("hydra.run.dir", "Hydra only composes the configuration here", ""),
    "model=_shared": ("model", "there is no choice '_shared'", f"model={MODELS[0]}"),
    "optimizer={learning_rate: 1}": (
        "optimizer", "takes the name of a choice, not {'learning_rate': 1}", "optimizer=adamw",
    ),
}  # fmt: skip


def test_what_cannot_be_meant_is_refused_with_what_can() -> None:
    found = problems(*REFUSED)
    for problem, (where, what, fix) in zip(found, REFUSED.values(), strict=True):
        assert (problem.where, problem.fix) == (where, fix)
        assert what in problem.what


def test_a_value_that_must_be_given_is_named() -> None:
    [problem] = problems("model=hf_folder", "data/tokenizer=bpe_4096")
    assert problem == Problem("model.path", "has no value and needs one", "model.path=...")


def test_a_missing_value_is_no_problem_once_it_is_given() -> None:
    assert compose(["model=hf_folder", "model.path=m"]).values["model"]["path"] == "m"


def test_an_interpolation_that_leads_nowhere_is_named() -> None:
    [problem] = problems("run.name=${nope}")
    assert problem.where == "run.name"
    assert "${nope} cannot be resolved" in problem.what
    assert "nope" in problem.what


def test_an_unknown_resolver_is_named() -> None:
    [problem] = problems("run.name=${nwo:x}")
    assert "cannot be resolved (Unsupported interpolation type nwo" in problem.what


def test_a_value_that_differs_each_time_is_refused() -> None:
    [problem] = problems("run.name=run-${now:%H-%M}")
    assert "would be another value each time" in problem.what


def test_an_interpolation_is_resolved() -> None:
    assert compose(["run.name=run-${run.seed}"]).values["run"]["name"] == "run-1"


def test_everything_wrong_with_a_command_line_is_said_at_once() -> None:
    found = problems(
        "model=llama_debgu", "optim.lr=1", "+foo.bar=1", "++optimizer.lrr=1", "steps.total=0",
        "steps.save_every=1,2", "run.root=${nope}",
    )  # fmt: skip
    assert {p.where for p in found} == {
        "model", "optim.lr", "foo.bar", "optimizer.lrr", "steps.total", "steps.save_every",
        "run.root",
    }  # fmt: skip


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match=r"--config-dir nowhere: there is no such folder"):
        compose([], config_dirs=["nowhere"])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "it's mine, really"
    for group in ("experiment", "model"):
        (folder / group).mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text(
        "defaults: [llama_debug, _self_]\nnum_hidden_layers: 2\n"
    )
    (folder / "experiment" / "exp.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\n\nsteps:\n  total: 7\n"
    )
    return folder


def test_a_users_folder_adds_choices_and_experiments(own: Path) -> None:
    values = compose(["experiment=exp"], config_dirs=[str(own)]).values
    assert (values["steps"]["total"], values["model"]["num_hidden_layers"]) == (7, 2)
    assert "mine" in Folders.find([str(own)]).choices("model")


def test_a_users_file_with_a_wrong_choice_is_a_problem(own: Path) -> None:
    (own / "experiment" / "bad.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: llama_debgu\n"
    )
    [problem] = problems("experiment=bad", config_dirs=(str(own),))
    assert (problem.where, problem.fix) == ("model", "model=llama_debug")


def test_a_users_file_that_is_no_yaml_is_a_problem(own: Path) -> None:
    (own / "experiment" / "bad.yaml").write_text("# @package _global_\nsteps: [1\n")
    [problem] = problems("experiment=bad", config_dirs=(str(own),))
    assert "a YAML file cannot be read" in problem.what
    assert "bad.yaml" in problem.what


def test_a_misspelt_group_in_a_users_file_is_a_problem(own: Path) -> None:
    (own / "experiment" / "bad.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /modle: llama_debug\n"
    )
    [problem] = problems("experiment=bad", config_dirs=(str(own),))
    assert "modle" in problem.what


def test_a_setting_knows_its_file_and_line() -> None:
    composed = compose([], trace=True)
    path = Path(__file__).parents[2] / "conf/optimizer/adamw.yaml"
    line = path.read_text().splitlines().index(
        next(t for t in path.read_text().splitlines() if t.startswith("learning_rate:"))
    ) + 1  # fmt: skip
    text = why(composed, "optimizer.learning_rate")
    assert text == f"optimizer.learning_rate = 0.003\n    conf/optimizer/adamw.yaml line {line}"


def test_a_setting_knows_its_override_its_choice_and_its_experiment() -> None:
    composed = compose(
        ["experiment=stdlib_10m", "engine=zero3", "steps.total=9", "data.sources.stdlib.weight=2"],
        trace=True,
    )
    assert composed.provenance["steps.total"] == "command line: steps.total=9"
    assert composed.provenance["engine.stage"].endswith("(chosen by engine=zero3)")
    assert composed.provenance["run.name"].startswith("conf/experiment/stdlib_10m.yaml line ")
    assert composed.provenance["model.kind"].startswith("conf/model/llama_10m.yaml line ")
    weight = composed.provenance["data.sources.stdlib.weight"]
    assert weight == "command line: data.sources.stdlib.weight=2"


def test_every_setting_has_a_source() -> None:
    composed = compose(["debug=tiny"], trace=True)
    flat = why(composed, "data").splitlines()
    assert len(flat) % 2 == 0
    assert all(composed.provenance.values())


def test_why_of_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(Refused, match=r"no setting 'optimizer.lr_rate'.* did you mean optimizer"):
        why(compose([], trace=True), "optimizer.lr_rate")


def test_conf_reads_as_hydra_would_read_it() -> None:
    folder = conf_folder()
    ours, hydras = ConfSource("main", f"conf://{folder}"), FileConfigSource("main", str(folder))
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).as_posix()
        one, other = ours.load_config(name), hydras.load_config(name)
        assert (one.config, one.header) == (other.config, other.header), name


def test_composing_writes_no_folder_and_leaves_logging_alone(tmp_path: Path) -> None:
    program = (
        "import logging\n"
        "before = list(logging.root.handlers)\n"
        "from launch.compose import compose\n"
        "from trainer.config.explain import validate\n"
        "validate(compose([]).values)\n"
        "assert logging.root.handlers == before\n"
        "import sys\n"
        "loaded = {'torch', 'numpy', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": root}, check=True,
        timeout=300,
    )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_who_set_a_value_is_told_while_another_is_missing() -> None:
    composed = compose(["data=jsonl"], trace=True, may_lack=True)
    said = why(composed, "data.sources")
    assert "data.sources.files.format = 'jsonl'\n    conf/data/jsonl.yaml line" in said
    assert "data.sources.files.paths = ???   (has no value and needs one)" in said
    with pytest.raises(ConfigError, match="no choice"):
        compose(["data=jsnl"], trace=True, may_lack=True)


def test_why_of_a_misspelt_name_proposes_a_section_or_a_setting() -> None:
    composed = compose([], trace=True)
    misspelt = {
        "optimizr": "optimizer",
        "data.source": "data.sources",
        "data/tokenizr": "data.tokenizer",
        "optimizer.lr": "optimizer.learning_rate",
        "engine.stge": "engine.stage",
    }
    for key, near in misspelt.items():
        with pytest.raises(Refused, match=rf"did you mean {near}\?"):
            why(composed, key)
        assert why(composed, near)


def test_what_is_not_in_conf_stays_missing() -> None:
    stored = compose(["optimizer=sgd"]).values
    del stored["optimizer"]["momentum"]
    assert "momentum" not in completed(stored)["optimizer"]
    whole = compose([]).values
    assert completed(whole) is whole
