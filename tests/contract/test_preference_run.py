"""A run on pairs, from its first step to a folder for others: reference, scores, export."""

from __future__ import annotations

import dataclasses
import importlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.task_cases import CASES, ENCODER, case_plan
from trainer.build import build_job
from trainer.capacity.shape import num_parameters
from trainer.commands import evaluate, export
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone
from trainer.errors import ConfigError
from trainer.export.trained import load_model, open_trained, with_reference
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import write_plan
from trainer.planning import layout_of, shape_of
from trainer.records.run_files import RunFiles
from trainer.reports import EvalReport

_PLAIN = ("engine=plain", "observers.tensorboard.enabled=false", "optimizer=adamw")


class Seen:
    """An observer: the run's last scores."""

    values: Mapping[str, float]

    def on_eval(self, report: EvalReport) -> None:
        self.values = report.values

    def on_step(self, report: Any) -> None: ...
    def on_save(self, report: Any) -> None: ...
    def on_upload(self, report: Any) -> None: ...
    def on_guard(self, report: Any) -> None: ...
    def close(self) -> None: ...


def trained(folder: Path, name: str, *overrides: str) -> tuple[RunFiles, Mapping[str, float], Any]:
    """(the run, its last scores, the model as it was left)."""
    plan = case_plan(folder, name, [*_PLAIN, *overrides])
    run = RunFiles(folder / "runs" / name)
    run.attempt(1).root.mkdir(parents=True)
    write_plan(run.attempt(1).plan, plan)
    run.run_json.write_text("{}")
    job, state = build_job(plan, Alone(), run=run, stop=threading.Event(), startup=StartUp())
    seen = Seen()
    assert fit(dataclasses.replace(job, observers=(seen,)), state) == "finished"
    wind_up(job, state.step)
    return run, seen.values, job.engine.model


def evaluated(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert evaluate.main([str(run.root), "--rows", "100", "--json"]) == 0
    found: dict[str, float] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_reference_stays_what_the_run_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], adapter: str
) -> None:
    adapted = [] if adapter == "none" else [f"model/adapter={adapter}"]
    run, scores, model = trained(tmp_path, "dpo", *adapted)
    stored = open_trained(run.root)
    dtype, device = torch.float32, torch.device("cpu")
    again = with_reference(
        load_model(stored, dtype=dtype, device=device), stored.plan, dtype=dtype, device=device
    )
    reference = dict(model.reference.named_parameters())
    assert all(torch.equal(p, reference[n]) for n, p in again.reference.named_parameters())
    assert abs(scores["margin"]) > 1e-4  # a reference that moved along would leave none
    found = evaluated(run, capsys)
    assert {name: found[name] for name in scores} == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_an_export_is_what_was_trained_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run, scores, model = trained(tmp_path, name)
    to = tmp_path / "exported"
    assert export.main([str(run.root), "--to", str(to)]) == 0
    said = (to / "README.md").read_text()
    assert "logits" in said
    transformers = importlib.import_module("transformers")
    auto = {"dpo": "AutoModelForCausalLM", "reward": "AutoModelForSequenceClassification"}[name]
    theirs = getattr(transformers, auto).from_pretrained(to)
    of_ours = {n: p for n, p in model.named_parameters() if not n.startswith("reference.")}
    for parameter_name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter, of_ours[parameter_name], rtol=0, atol=0)
    found = evaluated(RunFiles(to), capsys)  # of dpo still against what the run began with
    assert {name: found[name] for name in scores} == pytest.approx(scores, rel=1e-6)


def test_a_plan_counts_the_reference_and_the_rewards_head(tmp_path: Path) -> None:
    plan = case_plan(tmp_path, "reward")
    config = plan.config
    shape = shape_of(config, vocab_size_of_tokenizer=plan.vocab_size)
    assert (shape.head, shape.num_labels) == ("reward", 1)
    assert layout_of(case_plan(tmp_path, "dpo").config, 2).reference
    assert not layout_of(case_plan(tmp_path, "orpo").config, 2).reference
    one = case_plan(tmp_path, "orpo", ["engine=zero3"]).memory_per_rank.parameters
    two = case_plan(tmp_path, "dpo", ["engine=zero3"]).memory_per_rank.parameters
    assert two == 2 * one
    assert num_parameters(shape) < plan.num_parameters + 1


def test_encoders_have_no_answers_to_prefer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = (*ENCODER, "model.max_position_embeddings=128")
    for name, said in (("dpo", "no next token to predict"), ("reward", "no answer to rate")):
        monkeypatch.setitem(CASES, name, dataclasses.replace(CASES[name], model=encoder))
        with pytest.raises(ConfigError, match=said):
            case_plan(tmp_path, name)
