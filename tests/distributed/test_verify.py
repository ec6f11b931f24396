"""`longhaul verify`, as a user types it: proofs on their own settings, and what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.commands.verify import main
from trainer.errors import Exit, Refused


def longhaul(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=540)


def test_a_killed_and_resumed_run_equals_the_one_left_alone(tmp_path: Path) -> None:
    done = longhaul("verify", "resume", "--steps", "12", "--json", cwd=tmp_path)
    assert done.returncode == Exit.DONE, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["passed"]
    assert said["killed_after_step"] >= 4
    same, moved = said["resumes"]
    assert (same["world_size"], same["bound"], same["largest_difference"]) == (2, 0.0, 0.0)
    assert (moved["world_size"], moved["bound"]) == (3, 0.01)
    for one in (same, moved):
        assert 1 < one["resumed_at_step"] <= 12
        assert one["lost"] == one["different_losses"] == one["different_tensors"] == []
    assert not any(tmp_path.iterdir()), "the proof is made in a folder of its own"
    stages = [line for line in done.stderr.splitlines() if " rank" in line]
    assert stages == [
        "a run left alone: 12 steps on 2 ranks",
        "the same again, until a rank is killed once step 4 is done and one is saved",
        "the killed run goes on, on 2 ranks",
        "the killed run goes on, on 3 ranks",
    ]


def test_layouts_of_the_plain_engine_agree(tmp_path: Path) -> None:
    settings = ("engine=plain", "resources.ranks_per_node=1", "precision=fp32")
    done = longhaul("verify", "layouts", *settings, "--steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == Exit.DONE, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["passed"]
    assert len(said["layouts"]) == 6
    assert not any(tmp_path.iterdir())


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
