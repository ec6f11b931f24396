"""The door to fsspec: objects are whole or not there, and a network's trouble is no damage."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.helpers.object_model import Objects
from trainer.checkpoint.folder import read_failure
from trainer.errors import DamagedCheckpoint
from trainer.storage.patient import Patient
from trainer.storage.remote import open_store


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path}/base" if request.param == "memory" else f"file://{tmp_path}/base"


def test_objects_are_put_listed_read_and_removed(place: str) -> None:
    store = open_store(place)
    assert store.names(Path("a")) == []
    assert store.size(Path("a/b/c")) is None
    data = np.arange(200, dtype=np.uint8)
    store.put(Path("a/b/c"), lambda: [data[:50], data[50:]], size=200)
    store.put(Path("a/d"), lambda: [data[:3]], size=3)
    assert (store.names(Path("a")), store.sizes(Path("a"))) == (["b", "d"], {"d": 3})
    out = np.zeros(20, dtype=np.uint8)
    assert store.read(Path("a/b/c"), 190, out) == 10
    assert (out[:10] == data[190:]).all()
    with pytest.raises(FileNotFoundError):
        store.read(Path("a/none"), 0, out)
    store.remove([Path("a/d"), Path("a/d")])
    assert store.names(Path("a")) == ["b"]


@pytest.mark.parametrize("size", [10, 40 << 20])
def test_what_fails_half_way_leaves_no_object(place: str, size: int) -> None:
    store, block = open_store(place), np.ones(size // 2, dtype=np.uint8)

    def blocks() -> Any:
        yield block
        raise DamagedCheckpoint("chunk 7")

    with pytest.raises(DamagedCheckpoint):
        store.put(Path("a/b"), blocks, size=size)
    if place.startswith("file"):  # memory: shows half an object; readers check sizes
        assert store.sizes(Path("a")) == {}


def test_a_place_that_refuses_is_no_damage_and_is_tried_again(tmp_path: Path) -> None:
    store, slept = Objects(), list[float]()
    tries = iter([OSError(5, "reset"), OSError(5, "reset"), None])

    def before(verb: str, path: Path) -> None:
        if (error := next(tries)) is not None:
            raise error

    store.before = before
    data = np.ones(3, dtype=np.uint8)
    Patient(store, sleep=slept.append).put(Path("a"), lambda: [data], size=3)
    assert (store.content, slept) == ({"a": b"\1\1\1"}, [1.0, 2.0])


def test_a_network_that_breaks_says_nothing_about_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs calls all that it does not know EIO, which on a disk means a broken file."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel-that-is-secret")

    def breaks(*given: object, **more: object) -> bytes:
        raise OSError(errno.EIO, "reset by peer, key sentinel-that-is-secret")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", breaks)
    with pytest.raises(OSError, match="reset by peer") as caught:
        open_store("memory://x").read(Path("a"), 0, np.empty(1, dtype=np.uint8))
    assert not isinstance(read_failure(caught.value, Path("a")), DamagedCheckpoint)
    assert "sentinel" not in str(caught.value)
