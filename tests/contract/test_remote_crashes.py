"""An upload may stop at any change of the store: a machine with nothing loads old or new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.object_model import Counts, Objects, explore, loaded, run_with, upload, uploader
from trainer.checkpoint.remote_steps import StepObjects
from trainer.checkpoint.uploader import Uploader
from trainer.errors import Superseded
from trainer.records.manifest import Manifest


@pytest.mark.parametrize(("ranks", "keep_last"), [(1, 1), (1, 2), (3, 1)])
def test_wherever_an_upload_stops_the_old_step_or_the_new_one_is_loaded(
    ranks: int, keep_last: int, tmp_path: Path
) -> None:
    counts = explore(tmp_path / "run", ranks=ranks, keep_last=keep_last)
    assert counts.places >= 4 * ranks
    assert counts.old
    assert counts.new
    assert counts.wrong == counts.half == counts.stuck == 0, counts


class OldGoesFirst(Uploader):
    """Makes room before it commits."""

    def _commit(self, manifest: Manifest, text: bytes, target: StepObjects) -> None:
        self.tidy(target)
        super()._commit(manifest, text, target)


class ManifestFirst(Uploader):
    """Commits before the others' files are there."""

    def _await_all(self, manifest: Manifest, target: StepObjects, deadline: float) -> None:
        return


class ManifestLast(Uploader):
    """Removes a step's files while it still counts as one."""

    def _remove(self, folder: StepObjects) -> None:
        names = sorted(self._store.sizes(folder.path), reverse=True)
        self._store.remove([folder.path / name for name in names])


SLIPS = {
    "the old step goes first": OldGoesFirst,
    "the manifest goes first": ManifestFirst,
    "a manifest is removed last": ManifestLast,
}


@pytest.mark.parametrize("slip", SLIPS)
def test_an_uploader_in_another_order_is_found_out(slip: str, tmp_path: Path) -> None:
    counts: Counts = explore(tmp_path / "run", ranks=2, kind=SLIPS[slip])
    assert counts.wrong + counts.half, counts


def test_an_attempt_that_was_replaced_commits_nothing(tmp_path: Path) -> None:
    run, store = run_with(tmp_path / "run", 1), Objects()

    def refuse() -> None:
        raise Superseded("attempt 1 may no longer write")

    with pytest.raises(Superseded):
        uploader(store, run, may=refuse).upload(1)
    assert loaded(store, tmp_path / "nowhere") is None
    assert upload(store.content, run, 1)
    found = loaded(store, tmp_path / "nowhere")
    assert found is not None
    assert found.step == 1
