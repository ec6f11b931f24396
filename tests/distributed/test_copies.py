"""A machine is lost; the same command on another one goes on from the copies, to the same bits."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.helpers.lost_machine import command, lose_the_machine
from tests.helpers.object_model import loaded, run_with
from trainer.checkpoint.uploads import Remote, Uploads
from trainer.dist.world import Alone
from trainer.storage.remote import open_store


def test_a_lost_machine_costs_the_steps_since_the_last_copy(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/elsewhere"
    (tmp_path / "elsewhere").mkdir()
    # Two ranks: tests/cluster/test_s3.py.
    alone = ("engine=plain", "resources.ranks_per_node=1")
    told = lose_the_machine(tmp_path, url, options={}, env={}, ranks=alone)
    fetched = command(tmp_path, {}, "runs", "fetch", url, "lost", "--root", "other")
    assert fetched.returncode == 0, fetched.stdout
    assert "longhaul resume other/lost goes on from its copies" in fetched.stdout
    again = command(tmp_path, {}, "runs", "fetch", url, "lost", "--root", "other")
    assert again.returncode == 2
    assert "exists already" in again.stdout
    listed = command(tmp_path, {}, "checkpoint", "list", f"{url}/lost")
    assert [line.split()[0] for line in listed.stdout.splitlines()][-1] == "6"
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


def test_a_killed_upload_process_is_a_failed_upload_and_the_next_one_has_another(
    tmp_path: Path,
) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    url = f"file://{tmp_path}/elsewhere"
    (tmp_path / "elsewhere").mkdir()
    others = set(psutil.Process().children())
    ours = Uploads(Remote(url=url, drain_s=60.0), run, attempt=1, rank=0, world_size=1)
    try:
        ours.published(Alone(), 1)
        (child,) = set(psutil.Process().children()) - others
        child.kill()
        (lost,) = ours.drain(Alone(), lambda: None)
        assert lost.problem == "step 1 was not uploaded: the upload process ended (exit code -9)"
        ours.published(Alone(), 2)
        (done,) = ours.drain(Alone(), lambda: None)
        assert (done.step, done.succeeded, done.problem) == (2, True, "")
    finally:
        ours.close()
    assert not set(psutil.Process().children()) - others
    found = loaded(open_store(url), tmp_path / "nowhere")
    assert found is not None
    assert found.step == 2
