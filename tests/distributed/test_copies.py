"""A machine is lost; the same command on another one goes on from the copies, to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.lost_machine import command, lose_the_machine


@pytest.mark.timeout(400)
def test_a_lost_machine_costs_the_steps_since_the_last_copy(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/elsewhere"
    told = lose_the_machine(tmp_path, url, options={}, env={})
    fetched = command(tmp_path, {}, "runs", "fetch", url, "lost", "--root", "other")
    assert fetched.returncode == 0, fetched.stdout
    assert "longhaul resume lost goes on from its copies" in fetched.stdout
    again = command(tmp_path, {}, "runs", "fetch", url, "lost", "--root", "other")
    assert again.returncode == 2
    assert "exists already" in again.stdout
    listed = command(tmp_path, {}, "checkpoint", "list", f"{url}/lost")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == ["2", "4", "6"]
    nothing = command(tmp_path, {}, "runs", "fetch", url, "nobody")
    assert nothing.returncode == 2
    assert "no copies of a run here" in nothing.stdout
    assert told.run.root.is_dir()


def test_a_missing_package_is_one_sentence_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some text\n")
    words = ("data=text_files", "data.sources.files.paths=[corpus.txt]", "run.name=r")
    done = command(tmp_path, {}, "train", *words, "checkpoint.remote.url=gs://b/p")
    assert done.returncode == 2, done.stdout
    assert "pip install 'longhaul[gs]'" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.txt"]
