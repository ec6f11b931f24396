"""`longhaul verify`, as a user types it: proofs on their own settings, and what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.commands.verify import main
from launch.verify.resume import judge
from trainer.errors import Exit, Refused


def longhaul(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.timeout(300)
def test_a_killed_and_resumed_run_equals_the_one_left_alone(tmp_path: Path) -> None:
    done = longhaul("verify", "resume", "--steps", "12", "--json", cwd=tmp_path)
    assert done.returncode == Exit.DONE, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["passed"]
    assert said["killed_after_step"] >= 4
    assert 1 < said["resumed_at_step"] <= 12
    assert not any(tmp_path.iterdir()), "the proof is made in a folder of its own"


@pytest.mark.timeout(300)
def test_layouts_of_the_plain_engine_agree(tmp_path: Path) -> None:
    settings = ("engine=plain", "resources.ranks_per_node=1", "precision=fp32")
    done = longhaul("verify", "layouts", *settings, "--steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == Exit.DONE, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["passed"]
    assert len(said["layouts"]) == 6
    assert not any(tmp_path.iterdir())


def test_a_loss_or_a_tensor_that_differs_after_the_resume_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = {step: 5.0 - step for step in range(1, 5)}
    resumed = {3: 2.0, 4: 1.0000001}
    code = judge(expected, resumed, ["norm exp_avg"], steps=4, killed_at=3, as_json=False)
    assert code == Exit.STOP
    said = capsys.readouterr().out
    assert "step 4: loss 1.0000001 instead of 1.0" in said
    assert "the last checkpoints differ in norm exp_avg" in said


def test_a_run_that_began_anew_is_not_a_resumed_one(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {1: 2.0, 2: 1.0}
    assert judge(expected, expected, [], steps=2, killed_at=1, as_json=False) == Exit.STOP
    assert "it did not resume from a checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["layout"], "no verb 'layout'; did you mean layouts"),
        (["resume", "--steps", "7"], "--steps 7: at least 8"),
    ],
)
def test_what_cannot_be_verified_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        main(argv)
