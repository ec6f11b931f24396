"""A mapping -> Config, or every problem with where, what and an override that works."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from launch.compose import compose
from tests.helpers import configs
from trainer.config.explain import problems, validate
from trainer.config.names import nearest_setting, or_list
from trainer.config.schema import Config
from trainer.errors import ConfigError, Exit, Problem

DEFAULT = compose([]).values


def changed(**settings: Any) -> dict[str, Any]:
    """The default with dotted settings (dots written as two underscores) replaced or added."""
    values = copy.deepcopy(DEFAULT)
    for dotted, value in settings.items():
        *parents, last = dotted.split("__")
        here = values
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return values


def only(**settings: Any) -> Problem:
    [problem] = problems(changed(**settings))
    return problem


def test_the_default_is_a_config() -> None:
    assert isinstance(validate(DEFAULT), Config)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim__lr", "optimizer.learning_rate"),
        ("optimizer__lr", "optimizer.learning_rate"),
        ("optimizer__learning_rat", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("train__max_steps", "steps.total"),
        ("steps__save_evry", "steps.save_every"),
        ("model__hiden_size", "model.hidden_size"),
        ("data__seq_len", "data.sequence_length"),
        ("batch__micro_batchsize", "batch.micro_batch_size"),
        ("observers__wandb__projct", "observers.wandb.project"),
        ("data__sources__stdlib__wieght", "data.sources.stdlib.weight"),
        ("engine__bucket_element", "engine.bucket_elements"),
    ],
)
def test_an_unknown_setting_names_the_nearest(key: str, near: str) -> None:
    problem = only(**{key: 5})
    assert problem.where == key.replace("__", ".")
    assert problem.what == f"unknown setting; did you mean {near}?"
    assert problem.fix == f"{near}=5"


def test_an_unknown_setting_that_resembles_nothing() -> None:
    problem = only(foo__bar=1)
    assert (problem.where, problem.what) == ("foo.bar", "unknown setting")
    assert "--cfg job" in problem.fix


def test_a_setting_of_another_kind_says_whose_it_is() -> None:
    problem = only(optimizer__momentum=0.9)
    assert problem.what == "optimizer.kind=adamw has no such setting; sgd or muon has"
    assert problem.fix == "optimizer=sgd"


def test_a_setting_of_another_kind_of_source_can_be_left_out() -> None:
    problem = only(data__sources__stdlib__text_key="body")
    assert "data.sources.stdlib.kind=stdlib has no such setting" in problem.what
    assert problem.fix == "leave data.sources.stdlib.text_key out"


def test_a_wrong_word_names_the_nearest() -> None:
    problem = only(precision__kind="bf61")
    assert problem.what == "must be fp32, bf16, autocast or fp16, not 'bf61'"
    assert problem.fix == "precision.kind=bf16"


def test_a_wrong_kind_of_a_nested_section_has_a_path_without_tags() -> None:
    problem = only(data__sources__stdlib__kind="stdlb")
    assert problem.where == "data.sources.stdlib.kind"
    assert problem.fix == "data.sources.stdlib.kind=stdlib"


def test_a_range_inside_a_union_has_a_path_without_tags() -> None:
    problem = only(model__hidden_size=0)
    assert problem == Problem(
        "model.hidden_size", "must be at least 1, not 0", "model.hidden_size=768"
    )


@pytest.mark.parametrize(
    ("key", "value", "what", "fix"),
    [
        ("steps__total", "ten", "must be a whole number, not 'ten'", "steps.total=100"),
        ("steps__total", "10k", "must be a whole number, not '10k'", "steps.total=10"),
        ("steps__total", 1.5, "must be a whole number, not 1.5", "steps.total=100"),
        ("steps__total", True, "must be a whole number, not true", "steps.total=100"),
        ("optimizer__learning_rate", "hi", "must be a number, not 'hi'", None),
        ("optimizer__learning_rate", 0, "must be more than 0, not 0", None),
        ("optimizer__learning_rate", -0.1, "must be more than 0, not -0.1",
         "optimizer.learning_rate=0.001"),
        ("optimizer__learning_rate", float("nan"), "must be a finite number, not nan",
         "optimizer.learning_rate=0.001"),
        ("optimizer__beta1", 1, "must be less than 1, not 1", "optimizer.beta1=0.9"),
        ("schedule__final_fraction", 2, "must be at most 1, not 2", "schedule.final_fraction=1"),
        ("data__packing", "maybe", "must be true or false, not 'maybe'", "data.packing=true"),
        ("run__name", "a b/c", "may hold 64 letters, digits, '.', '_' and '-', and not start "
         "with '.' or '-', not 'a b/c'", "run.name=a-b-c"),
        ("run__name", True, "must be text, not True", None),
        ("run__trust", "pkg", "must be a list, not 'pkg'", "run.trust=[pkg]"),
        ("steps", 5, "must be a section of settings, not 5", "steps.total=5"),
        ("data__sources", {}, "needs at least 1 entry, not a mapping", None),
    ],
)  # fmt: skip
def test_a_wrong_value_says_what_would_be_right(
    key: str, value: Any, what: str, fix: str | None
) -> None:
    problem = only(**{key: value})
    assert problem.where == key.replace("__", ".")
    assert problem.what == what
    if fix is not None:
        assert problem.fix == fix


def test_a_target_that_is_no_import_path() -> None:
    sources = {"x": {"kind": "custom", "target": "no path"}}
    problem = only(data__sources=sources)
    assert problem.where == "data.sources.x.target"
    assert problem.what == "must look like package.module:Class, not 'no path'"


def test_a_missing_value_is_named() -> None:
    values = copy.deepcopy(DEFAULT)
    del values["steps"]["total"], values["model"]["hidden_size"], values["engine"]["kind"]
    assert [(p.where, p.what, p.fix) for p in problems(values)] == [
        ("steps.total", "has no value and needs one", "steps.total=100"),
        ("model.hidden_size", "has no value and needs one", "model.hidden_size=768"),
        (
            "engine.kind",
            "has no value and needs one: plain, canonical or deepspeed",
            "engine=zero2",
        ),
    ]


def test_a_number_may_be_a_name_and_off_may_be_unquoted() -> None:
    config = validate(changed(run__name=2026, observers__wandb__mode=False))
    assert (config.run.name, config.observers.wandb.mode) == ("2026", "off")


FIXED_BY_ITS_FIX = {
"optimizer__learning_rate": -1, "optimizer__beta1": 7,
    "data__packing": "no?", "precision__kind": "bf61", "run__name": "a/b",
    "data__held_out_fraction": 1.0, "run__seed": -3, "resources__rendezvous_port": 99999,
    "engine__stage": 4, "steps__total": 10**23, "steps__save_every": 10**20,
    "resources__ranks_per_node": 10**9, "resources__collective_timeout_s": 1e300,
    "model__num_hidden_layers": 10**7, "batch__micro_batch_size": 10**20,
    "batch__global_batch_size": 10**20, "data__sequence_length": 10**20,
    "resources__min_nodes": 10**20, "schedule__warmup_tokens": 10**20,
}  # fmt: skip


@pytest.mark.parametrize("key", FIXED_BY_ITS_FIX)
def test_the_override_that_is_proposed_works(key: str) -> None:
    problem = only(**{key: FIXED_BY_ITS_FIX[key]})
    validate(configs.values(problem.fix, "schedule.warmup_steps=0"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("\u00e9preuve", "epreuve"),
        ("na\u00efve 2", "naive-2"),
        ("n\u65e5\u672c", "n"),
        ("\u65e5\u672c", "first-run"),
        (".hidden/", "hidden"),
        ("x" * 80, "x" * 64),
    ],
)
def test_a_name_that_is_proposed_looks_like_the_one_typed_and_is_accepted(
    given: str, name: str
) -> None:
    problem = only(run__name=given)
    assert problem.fix == f"run.name={name}"
    validate(changed(run__name=name))


def test_what_no_run_could_count_is_refused_in_one_sentence() -> None:
    problem = only(steps__total=10**23)
    assert problem.what == f"must be at most 1,000,000,000,000, not {10**23}"
    assert only(data__sources__stdlib__weight=-(10.0**300)).where == "data.sources.stdlib.weight"
    validate(changed(run__seed=2**63 - 1))  # it has a limit of its own


def test_a_source_by_another_name_than_it_has() -> None:
    files = {"kind": "files", "format": "text", "paths": ["a.txt"]}
    sources = {"files": files, "jsonl": {"paths": ["x", "y"]}}
    problem = only(data__sources=sources)
    assert problem.where == "data.sources.jsonl"
    assert problem.what == "there is no jsonl in data.sources; did you mean files?"
    assert problem.fix == "data.sources.files.paths=[x,y]"
    sources["jsonl"] = {"path": "x"}  # no source here has that
    assert only(data__sources=sources).where == "data.sources.jsonl.kind"


def test_all_problems_are_in_one_error_with_exit_code_2() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(changed(steps__total=0, optim__lr=1, precision__kind="x"))
    assert len(caught.value.problems) == 3
    assert caught.value.exit_code == Exit.REFUSED
    assert str(caught.value).startswith("3 problems in the configuration\n  1. ")


def test_names_are_listed_as_people_do() -> None:
    assert [or_list(n) for n in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "", "a", "a or b", "a, b or c",
    ]  # fmt: skip
    assert nearest_setting("zzz.qqq", ["run.name"]) is None
    assert nearest_setting("foo", ["restart.oom"]) is None  # short names are alike by chance
    assert nearest_setting("sed", ["run.seed"]) == "run.seed"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("otto", "must be a whole number or auto, not 'otto'"),
        (-5, "must be at least 0, not -5"),
        (1.5, "must be a whole number or auto, not 1.5"),
        (True, "must be a whole number or auto, not true"),
        (None, "must be a whole number or auto, not None"),
    ],
)
def test_a_number_or_a_word(given: object, said: str) -> None:
    problem = only(steps__save_every=given)
    assert (problem.where, problem.what) == ("steps.save_every", said)
    assert problem.fix.startswith("steps.save_every=")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_list_of_one_is_proposed_where_sections_are_of_several_kinds(kind: str) -> None:
    values = compose([f"model/adapter={kind}"]).values
    values["model"]["adapter"]["targets"] = "q_proj"
    [problem] = problems(values)
    assert problem.what == "must be a list, not 'q_proj'"
    assert problem.fix == "model.adapter.targets=[q_proj]"
