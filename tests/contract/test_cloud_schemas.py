"""What is rendered, before the libraries that read it, where they are installed: SkyPilot, Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.backends.table import backend_of
from launch.cloud.schemas import SKY_PYTHON, check_ray, check_sky, sky_python
from launch.node.ranks_spec import RANKS_FILE
from tests.golden.test_cloud_golden import CASES
from tests.helpers.cloud import plan_for
from tests.helpers.configs import config
from trainer.errors import Refused


def _text(name: str) -> str:
    plan = plan_for(config(*CASES[name]))
    submission = backend_of(plan.config.launch.kind).render(plan, run_folder="runs/first-run")
    (text,) = (text for file, text in submission.files.items() if file != RANKS_FILE)
    return text


@pytest.mark.parametrize("name", ["ray_up_aws_spot", "ray_up_gcp"])
def test_ray_reads_the_cluster_file(name: str) -> None:
    text = _text(name)
    assert check_ray(text)  # Ray is a dependency: where it did not judge, something is wrong
    with pytest.raises(Refused, match="max_workers: 'many' is not of type 'integer'"):
        check_ray(text.replace("max_workers: 1\nidle", "max_workers: many\nidle"))


@pytest.mark.parametrize("name", ["sky_managed_spot", "sky_cluster"])
def test_skypilot_reads_the_task(name: str) -> None:
    if sky_python() is None:
        pytest.skip(f"SkyPilot is not installed: {SKY_PYTHON} names an interpreter that has it")
    text = _text(name)
    assert check_sky(text)
    with pytest.raises(Refused, match="did you mean 'num_nodes'"):
        check_sky(text.replace("num_nodes:", "num_node:"))


def test_the_interpreter_of_skypilot_is_that_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "sky"
    monkeypatch.delenv(SKY_PYTHON, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sky_python() is None
    command.write_text(f"#!{sys.executable}\n")
    command.chmod(0o755)
    assert sky_python() == sys.executable
    command.write_text("#!/bin/sh\n")
    assert sky_python() is None
    monkeypatch.setenv(SKY_PYTHON, "/opt/sky/bin/python")
    assert sky_python() == "/opt/sky/bin/python"


def test_an_interpreter_without_skypilot_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SKY_PYTHON, sys.executable)
    assert check_sky(_text("sky_managed_spot")) is False
