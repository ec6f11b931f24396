"""What may differ when a run is resumed, and what that means."""

from __future__ import annotations

import pytest

from tests.helpers.configs import config
from trainer.changes import _CLASSES, changes, class_of, refusals
from trainer.config.schema import Config
from trainer.errors import Problem

OLD = config()


def dotted(values: dict[str, object], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        is_section = isinstance(value, dict) and value
        found += dotted(value, f"{prefix}{key}.") if is_section else [f"{prefix}{key}"]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("where", dotted(OLD.model_dump()))
def test_every_setting_has_a_class(where: str) -> None:
    assert class_of(where)[1] != "this setting has no class yet"


def test_every_section_has_a_class_and_every_class_a_section() -> None:
    assert {name.partition(".")[0] for name in _CLASSES} == set(Config.model_fields)


def test_what_has_no_class_is_frozen() -> None:
    assert class_of("new.thing") == ("frozen", "this setting has no class yet")


def test_nothing_changed_is_no_change() -> None:
    assert changes(OLD, config()) == []
    assert refusals(OLD, config()) == []


FREE = [
    "engine=zero3", "resources.ranks_per_node=1", "batch.micro_batch_size=2", "steps.save_every=7",
    "run.root=elsewhere", "observers=quiet", "data.store_root=s", "data.prefetch_steps=9",
    "model.activation_checkpointing=true", "evals=none", "checkpoint=keep_all", "resume=must",
    "resources.threads_per_rank=1", "run.name=other",
]  # fmt: skip
DRIFT = ["steps.total=600", "precision=fp32", "model.compile=true", "model.loss_chunk_tokens=64"]
BRANCH = [
    "optimizer.learning_rate=1", "optimizer.weight_decay=0", "schedule=linear",
    "schedule.warmup_steps=3", "batch.global_batch_size=32", "model.dropout=0.1",
    "data.sources.stdlib.weight=2",
]  # fmt: skip
FROZEN = [
    "model.num_hidden_layers=5", "model=gpt2", "data.sequence_length=128", "run.seed=2",
    "data.tokenizer.vocab_size=300", "optimizer=sgd", "data.packing=false",
    "data.held_out_fraction=0.2", "+data.sources.more={kind: stdlib}",
]  # fmt: skip


@pytest.mark.parametrize("override", FREE + DRIFT)
def test_how_and_how_long_may_change(override: str) -> None:
    new = config(override)
    assert changes(OLD, new)
    assert refusals(OLD, new) == []


@pytest.mark.parametrize("override", DRIFT)
def test_drift_is_told_from_free(override: str) -> None:
    assert {c.kind for c in changes(OLD, config(override))} == {"drift"}


@pytest.mark.parametrize("override", BRANCH)
def test_another_training_needs_to_be_allowed(override: str) -> None:
    new = config(override)
    refused = refusals(OLD, new)
    assert refused
    assert all(p.fix.startswith("resume.allow=[") for p in refused)
    assert refusals(OLD, new, allow=[p.where for p in refused]) == []


@pytest.mark.parametrize("override", FROZEN)
def test_another_run_is_refused_even_if_allowed(override: str) -> None:
    new = config(override)
    everything = [change.where for change in changes(OLD, new)]
    refused = refusals(OLD, new, allow=everything)
    assert refused
    assert all("or another run.name" in p.fix for p in refused)


def test_a_refusal_shows_both_values_and_what_to_type() -> None:
    assert refusals(OLD, config("data.sequence_length=128")) == [
        Problem(
            "data.sequence_length",
            "the run has 256, now it is 128: the tokens already seen would be others",
            "data.sequence_length=256, or another run.name",
        )
    ]
    [branch] = refusals(OLD, config("optimizer.learning_rate=1.0"), allow=["schedule"])
    assert branch.fix == "resume.allow=[schedule,optimizer.learning_rate]"


def test_a_section_may_be_allowed_whole() -> None:
    new = config("optimizer.learning_rate=1", "optimizer.beta1=0.8")
    assert refusals(OLD, new, allow=["optimizer"]) == []


def test_a_change_reads_as_a_line() -> None:
    [change] = changes(OLD, config("steps.total=600"))
    assert str(change) == (
        "steps.total: 300 -> 600 (the learning rate follows the new total from here on)"
    )
