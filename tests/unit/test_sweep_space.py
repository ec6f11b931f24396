"""What a sweep searches: Hydra's grammar in, points and overrides out, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from launch.compose import compose
from launch.sweep.grammar import as_settings, space_of, taken_apart
from launch.sweep.space import Choice, Interval, Space
from tests.helpers.sweeps import section
from trainer.errors import ConfigError


def space(*searched: str, **values: Any) -> Space:
    return space_of(section(**values), searched)


def test_a_command_line_is_taken_apart() -> None:
    asked = taken_apart(
        ["a=1", "b=1,2", "sweep=tpe", "sweep.trials=3", "c=interval(0,1)", "d=[1,2]"]
    )
    assert asked.fixed == ("a=1", "d=[1,2]")
    assert asked.searched == ("b=1,2", "c=interval(0,1)")
    assert asked.sweep == ("sweep=tpe", "sweep.trials=3")


def test_hydras_grammar_becomes_dimensions() -> None:
    found = space(
        "model=llama_debug,llama_10m",
        "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
        "batch.global_batch_size=int(interval(8,64))",
        "schedule.warmup_steps=range(0,30,10)",
        "run.seed=choice(1,2)",
    )
    assert found.dimensions == (
        Choice("model", (("model=llama_debug",), ("model=llama_10m",))),
        Interval("optimizer.learning_rate", 1e-4, 1e-2, is_log=True),
        Interval("batch.global_batch_size", 8, 64, is_whole=True),
        Choice(
            "schedule.warmup_steps",
            tuple((f"schedule.warmup_steps={n}",) for n in (0, 10, 20)),
        ),
        Choice("run.seed", (("run.seed=1",), ("run.seed=2",))),
    )


def test_a_grid_is_that_of_train_m_and_the_last_value_varies_fastest() -> None:
    found = space("a=1,2", "m=p,q")
    assert [found.overrides(point) for point in found.points()] == [
        ("a=1", "m=p"),
        ("a=1", "m=q"),
        ("a=2", "m=p"),
        ("a=2", "m=q"),
    ]


def test_what_depends_is_searched_only_where_it_applies() -> None:
    conditional = [
        {"when": "optimizer=muon", "space": ["optimizer.momentum=0.9,0.95"]},
        {"when": "optimizer.momentum=0.95", "space": ["optimizer.nesterov=true,false"]},
    ]
    found = space("optimizer=adamw,muon", conditional=conditional)
    assert [found.overrides(point) for point in found.points()] == [
        ("optimizer=adamw",),
        ("optimizer=muon", "optimizer.momentum=0.9"),
        ("optimizer=muon", "optimizer.momentum=0.95", "optimizer.nesterov=True"),
        ("optimizer=muon", "optimizer.momentum=0.95", "optimizer.nesterov=False"),
    ]


def test_joint_alternatives_change_several_settings_at_once() -> None:
    found = space(joint={"size": [["a=1", "b=2"], ["a=2", "b=4"]]})
    assert [found.overrides(point) for point in found.points()] == [("a=1", "b=2"), ("a=2", "b=4")]


def test_corners_show_every_alternative_and_both_ends() -> None:
    conditional = [{"when": "o=q", "space": ["m=interval(0.5,1)"]}]
    found = space("o=p,q,r", "x=tag(log,interval(1e-3,1))", conditional=conditional)
    corners = found.corners()
    texts = {text for point in corners for text in found.overrides(point)}
    assert {"o=p", "o=q", "o=r", "x=0.001", "x=1.0", "m=0.5", "m=1.0"} <= texts
    assert len(corners) <= 8
    assert all(("m" in point) == (point["o"] == 1) for point in corners)


def test_an_override_reads_back_to_the_bit() -> None:
    found = space("x=interval(0,1)")
    value = 0.1 + 0.2
    assert as_settings(found.overrides({"x": value})) == {"x": value}
    assert as_settings(["a='x y'", "b=[1,null]", "c={d:true}"]) == {
        "a": "x y",
        "b": [1, None],
        "c": {"d": True},
    }


@pytest.mark.parametrize(
    ("texts", "values", "said"),
    [
        ([], {}, "nothing to search"),
        (["a=1,2", "a=3,4"], {}, "searched twice"),
        (["a=interval(2,2)"], {}, "holds nothing to search"),
        (["a=tag(log,interval(0,1))"], {}, "begins above 0"),
        (["a=tag(lg,interval(1,2))"], {}, "there is no tag 'lg'"),
        (["model=glob(*)"], {}, "does not say which values"),
        (["a=shuffle(1,2)"], {}, "another order each time"),
        (["run.name=a,b"], {}, "calls each trial itself"),
        (["a=1,2"], {"space": ["b=3"]}, "has one value, and a space needs several"),
        (["a=1,2"], {"space": ["b=1,("]}, "cannot read '1,"),
        (["a=1,2"], {"joint": {"s": [["b=1"]]}}, "needs two alternatives"),
        (["a=1,2"], {"joint": {"s": [["b=1"], ["b=2,3"]]}}, "is no key=value"),
        (["a=1,2"], {"joint": {"s": [["a=1"], ["a=2"]]}}, "is searched by a and by s"),
        (["a=1,2"], {"conditional": [{"when": "a=3", "space": ["b=1,2"]}]}, "is never so"),
        (["a=1,2"], {"conditional": [{"when": "z=3", "space": ["b=1,2"]}]}, "is no alternative"),
        (["a=interval(0,1)"], {"sampler": "grid"}, "an interval has no end of values"),
        (["a=1,2"], {"sampler": "cmaes"}, "moves two numbers or more"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    texts: list[str], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        space(*texts, **values)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trails": 3}, "did you mean sweep.trials"),
        ({"pruner": {"kind": "asha", "first_step": 9, "factr": 3}}, "sweep.pruner.factr"),
        ({"sampler": "bayes"}, "not 'bayes'"),
        ({"goals": ["min", "max"]}, "2 for 1 metrics"),
        ({"metrics": ["a", "a"], "goals": ["min", "min"]}, "names a metric twice"),
        ({"metrics": ["a", "b"], "goals": ["min", "max"], "sampler": "cmaes"}, "one metric only"),
        (
            {"metrics": ["a", "b"], "goals": ["min", "max"]}
            | {"pruner": {"kind": "asha", "first_step": 9, "factor": 3, "min_trials": 1}},
            "several metrics do not say",
        ),
        ({"trials": 0}, "does not end by itself"),
        ({"budget": {"gpu_hours": None, "money": 5, "price": None}}, "needs the price"),
        ({"concurrency": 0}, "sweep.concurrency"),
    ],
)
def test_settings_of_a_sweep_that_cannot_be_are_one_sentence(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        section(**values)
    assert said in str(caught.value)


def test_a_run_has_no_part_of_a_sweep() -> None:
    with pytest.raises(ConfigError, match="is of `longhaul sweep`"):
        compose(["sweep=tpe"])
    with pytest.raises(ConfigError, match="there is no choice 'tpee'") as caught:
        compose(["sweep=tpee"], config_name="sweep")
    assert "1 problem in" in str(caught.value)


@pytest.mark.parametrize("name", ["asha", "cmaes", "default", "grid", "halving", "tpe"])
def test_every_file_of_conf_sweep_is_valid(name: str) -> None:
    assert section(f"sweep={name}").space == ()
