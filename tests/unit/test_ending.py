"""The last lines a person reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from launch.ending import say_ending
from launch.run.run_folder import new_attempt
from trainer.errors import Exit
from trainer.records.attempt import Done, write_record
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles


@pytest.mark.parametrize(
    ("task", "data", "generates"),
    [
        ({"kind": "causal_lm"}, {}, True),
        ({"kind": "masked_lm"}, {}, False),
        ({"kind": "masked_lm_nsp"}, {}, False),
        ({"kind": "classify"}, {"kind": "examples"}, False),
    ],
)
def test_only_what_can_go_on_with_a_text_is_told_to(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: dict[str, Any],
    data: dict[str, Any],
    generates: bool,
) -> None:
    run = RunFiles(tmp_path / "run")
    run.root.mkdir()
    files = new_attempt(run)
    shown = {"observers": {"console": {"enabled": True}}}
    write_json(files.plan, {"config": {"task": task, "data": data, **shown}, "stores": []})
    write_record(files.done, Done(time.time(), 7, 1.5))
    say_ending(run, files, Exit.DONE)
    said = capsys.readouterr().out
    assert "run: finished at step 7, loss 1.5000" in said
    assert "longhaul export" in said
    assert ("longhaul generate" in said) == generates
