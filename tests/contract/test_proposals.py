"""What a refusal proposes, typed in its turn, is not refused again: hundreds of compositions."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import pytest
import yaml

from launch.compose import compose
from tests.helpers import configs
from trainer.config.explain import problems, validate
from trainer.config.fields import known_settings
from trainer.errors import ConfigError, Problem

DEFAULT = compose([]).values

# Each is refused; what is proposed then, typed in its place, must be accepted.
HINTS = [
    "run.name=\u00e9preuve",
    "run.name=\u65e5\u672c",
    "'run.name=a b\u00e9'",
    "run.name=[a",
    "run.root='a\"\u00e9'",
    "run.root='it\\''s \u00e9\\\\'",
    "steps.total=1\u00e90",
    "model=llam\u00e9_125m",
    "data=text_files 'data.sources.files.paths=[a \u00e9,b]'",
    "data=text_files data.sources.files.paths=[a] data.sources.jsonl.paths=[b]",
    "steps.total=99999999999999999999999",
    "steps.save_every=99999999999999999999999",
    "resources.nodes=99999999999999999999999",
    "engine.kind=plainn resources.ranks_per_node=1",
    "engine.zero_stage=3",
    "lr=0.1",
    "precision=bf61",
    "data.held_out_fraction=2",
    "batch.global_batch_size=1 resources.ranks_per_node=3",
    "resources.ranks_per_node=100000",
    "resources.threads_per_rank=1000000",
    "resources.nodes=1..3",
    "launch=ssh launch.hosts=[a,b,c] batch.micro_batch_size=1 resources.nodes=1..2",
    "launch=ray batch.micro_batch_size=1 resources.nodes=2-1",
    "launch=slurm launch.time_limit_h=0",
    "launch=slurm launch.time_limit_h=-3",
    "launch=slurm launch.time_limit_h=1e-9",
    "launch=slurm launch.chain=100000",
    "launch=slurm launch.chain=0",
    "launch=kuberay launch.image=a/b:1 launch.time_limit_h=0",
]


@pytest.mark.parametrize("typed", HINTS)
def test_what_is_proposed_and_typed_is_not_refused_again(typed: str) -> None:
    overrides = shlex.split(typed)
    [problem] = _refusals(overrides)
    proposed = shlex.split(problem.fix)
    assert proposed
    replaced = [o for o in overrides if not o.partition("=")[0].startswith(problem.where)]
    assert not _refusals([*replaced, *proposed])


def _refusals(overrides: list[str]) -> list[Problem]:
    try:
        validate(compose(overrides).values)
    except ConfigError as e:
        return list(e.problems)
    return []


@pytest.mark.parametrize("given", ["x y", -1, 1.5, 10**23, None, {"a": 1}])
def test_what_is_proposed_for_any_setting_is_not_refused_in_its_turn(given: Any) -> None:
    for key in set(known_settings(DEFAULT)) - {"resume.allow"}:  # rules judge what it names
        values = _changed(key, given)
        found = problems(values)
        if len(found) != 1 or "..." in found[0].fix or "=" not in found[0].fix:
            continue  # it is accepted, or the fix is a sentence, or has a place to fill in
        [fix] = shlex.split(found[0].fix)
        name, _, value = fix.partition("=")
        if name != key:  # a choice, which takes the place of its section
            values[name] = configs.values(fix)[name]
            values = _changed(name, values[name])
        else:
            values = _changed(key, yaml.safe_load(value))
        validate(values)


def _changed(key: str, value: Any) -> dict[str, Any]:
    """The default with one dotted setting replaced."""
    values = copy.deepcopy(DEFAULT)
    *parents, last = key.split(".")
    here = values
    for name in parents:
        here = here.setdefault(name, {})
    here[last] = value
    return values
