"""longhaul checkpoint list|verify|diff, as a person or a script calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.commands.checkpoint import main
from trainer.dist.world import Alone


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with steps 1 and 2."""
    checkpoints = CheckpointStore(tmp_path / "checkpoints", origin={"engine": "zero2"})
    engine = SliceEngine("plain", 0, 1)
    for step in (1, 2):
        engine.fill(1)
        if step == 2:
            engine.held[0].values[3] += 0.5
        assert checkpoints.save(Alone(), engine, step=step, training={"step": step}).succeeded
    return tmp_path


def damage(run: Path, step: int) -> None:
    path = run / f"checkpoints/step-{step:08d}/rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_list_shows_what_is_stored(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "2"]
    assert all("zero2" in line for line in lines[1:])
    assert main(["list", str(run), "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (row["step"], row["parent_step"], row["world_size"], row["problem"]) == (2, 1, 1, "")
    assert row["training"] == {"step": 2}


def test_list_sees_a_file_that_is_gone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints/step-00000001/rank-00000.safetensors").unlink()
    (run / "checkpoints/step-00000002/manifest.json").write_text("{}")
    assert main(["list", str(run)]) == 78
    out = capsys.readouterr().out
    assert "DAMAGED: rank-00000.safetensors: missing or of another size" in out
    assert "DAMAGED: manifest.json: " in out


def test_list_shows_leftovers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints/step-00000003.incoming-0001").mkdir()
    assert main(["list", str(run)]) == 0
    assert "unfinished: step-00000003.incoming-0001" in capsys.readouterr().out


def test_verify_says_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("whole") == 2


def test_verify_names_the_file_and_the_chunk(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run, 2)
    assert main(["verify", str(run), "1"]) == 0
    assert main(["verify", str(run)]) == 78
    out = capsys.readouterr().out
    assert "step 2: DAMAGED" in out
    assert "rank-00000.safetensors: chunk 0 of 1" in out
    assert main(["verify", str(run), "step-00000002", "--json"]) == 78
    (found,) = json.loads(capsys.readouterr().out)
    assert found["problems"]


@pytest.mark.parametrize("places", [["1", "2"], ["1"], ["1", "RUN", "2"], ["1", "RUN"]])
def test_diff_tells_the_tensor_and_how_far_apart(
    run: Path, capsys: pytest.CaptureFixture[str], places: list[str]
) -> None:
    given = [str(run / "checkpoints") if place == "RUN" else place for place in places]
    assert main(["diff", str(run), *given]) == 0
    out = capsys.readouterr().out
    assert "steps 1 and 2: 1 differ, 20 are bit-identical" in out
    assert "embed.weight master" in out
    assert main(["diff", str(run), *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (apart,) = [d for d in found["tensors"] if d["differing"]]
    assert (apart["name"], apart["kind"], apart["differing"]) == ("embed.weight", "master", 1)
    assert apart["largest"] == pytest.approx(0.5)


def test_diff_of_a_damaged_step_gives_no_numbers(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run, 2)
    assert main(["diff", str(run), "1", "2"]) == 78
    said = capsys.readouterr().err
    assert "step 2 is damaged: " in said
    assert "does not match its checksum" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "nowhere"], "nowhere: no such folder; give a run's folder"),
        (["list", "."], ".: no checkpoints here; give a run's folder"),
        (["verify", "RUN", "9"], "no checkpoint of step 9; there are: 1, 2"),
        (["verify", "RUN", "last"], "'last' is not a step; give a number, 100 or step-00000100"),
        (["diff", "RUN"], "diff compares two checkpoints"),
        (["diff", "RUN", "1", "2", "3"], "diff compares two checkpoints"),
        (["diff", "RUN", "1", "9"], "no checkpoint of step 9; there are: 1, 2"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    (run / "empty").mkdir()
    monkeypatch.chdir(run / "empty")
    assert main([str(run) if a == "RUN" else a for a in arguments]) == 2
    assert says in capsys.readouterr().err


def test_looking_at_checkpoints_does_not_load_torch() -> None:
    program = "import sys, trainer.commands.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
