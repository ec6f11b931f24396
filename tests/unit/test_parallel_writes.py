"""A large file is written past the page cache, several blocks at once, and is the same file."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from trainer.checkpoint.format import Identity
from trainer.checkpoint.writer import write_rank_file
from trainer.records.fragment import Fragment
from trainer.storage import local
from trainer.storage.local import Bytes, LocalStorage, NewFile

_BLOCK = 1 << 20
_ELEMENTS = (9 << 20) // 4 + 321  # its last block ends in the middle of a page


def _staged() -> Bytes:
    """Memory that begins with a page, as staging buffers do."""
    room = np.frombuffer(mmap.mmap(-1, _ELEMENTS * 4), np.float32)
    room[:] = np.arange(_ELEMENTS)
    return room.view(np.uint8)


def _blocks(data: Bytes) -> Iterator[Bytes]:
    for start in range(0, len(data), _BLOCK):
        yield data[start : start + _BLOCK]


def _write(storage: LocalStorage, folder: Path, data: Bytes, **how: int) -> bytes:
    folder.mkdir(exist_ok=True)
    fragment = Fragment("a", "master", (_ELEMENTS,), 0, _ELEMENTS)
    write_rank_file(storage, folder, Identity(1, 0, 1), [fragment], _blocks(data), **how)
    (path,) = folder.iterdir()
    return path.read_bytes()


@pytest.mark.parametrize("threads", [0, 3])
def test_the_file_is_the_same_however_it_is_written(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _staged()
    past_the_cache = _write(LocalStorage(), tmp_path / "a", data, threads=threads)
    monkeypatch.setattr(local, "_DIRECT_KINDS", ())
    plain = _write(LocalStorage(), tmp_path / "b", data)
    assert past_the_cache == plain
    assert plain.endswith(data.tobytes())


def test_what_went_past_the_page_cache_and_what_went_through_it_is_one_file(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True)
    if kind.stdout.strip() not in ("ext2/ext3", "xfs"):
        pytest.skip(f"temporary files lie on {kind.stdout.strip()}, not on ext4 or XFS")
    path = tmp_path / "f"
    with LocalStorage().create(path, size=16 << 20) as file:
        assert file._direct >= 0  # type: ignore[attr-defined]
        data = _staged()
        file.write(4096, data)
        file.write(0, b"head")
        file.fsync()
    with path.open("rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        assert pages[4096 : 4096 + len(data)] == data.tobytes()
        assert pages[:4] == b"head"


def test_a_disk_that_wants_another_alignment_gets_plain_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_DIRECT_ALIGNMENT", 4)  # so that every try is refused with EINVAL
    data = _staged()
    with LocalStorage().create(tmp_path / "f", size=16 << 20) as file:
        file.write(100, data[4:])
        file.fsync()
    assert (tmp_path / "f").read_bytes()[100:][: len(data) - 4] == data[4:].tobytes()


class _Watched(LocalStorage):
    """Writes that take long, the first ones longest; `events` in the order in which they end."""

    def __init__(self, fails: int = -1) -> None:
        self.events: list[str] = []
        self.fails = fails
        self.most = 0

    def create(self, path: Path, *, size: int) -> NewFile:
        return _WatchedFile(super().create(path, size=size), self)


class _WatchedFile:
    def __init__(self, file: NewFile, storage: _Watched) -> None:
        self._file, self._storage = file, storage
        self._lock, self._now = threading.Lock(), 0

    def write(self, offset: int, data: Bytes | bytes) -> None:
        with self._lock:
            self._now += 1
            self._storage.most = max(self._storage.most, self._now)
        time.sleep(0.02)
        self._file.write(offset, data)
        with self._lock:
            self._now -= 1
        if self._storage.fails >= 0 and offset >= self._storage.fails:
            raise OSError(5, "a bad disk")
        self._storage.events.append("head" if offset == 0 else "data")

    def fsync(self) -> None:
        self._file.fsync()
        self._storage.events.append("fsync")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.close()


def test_all_data_is_written_before_the_header_and_the_header_before_fsync(tmp_path: Path) -> None:
    watched = _Watched()
    _write(watched, tmp_path / "a", _staged(), threads=3)
    assert watched.events == ["data"] * 10 + ["head", "fsync"]
    assert 2 <= watched.most <= 3


@pytest.mark.parametrize("fails", [1 << 20, 9 << 20])
def test_a_write_that_fails_in_any_thread_fails_the_file(fails: int, tmp_path: Path) -> None:
    watched = _Watched(fails=fails)
    with pytest.raises(OSError, match="a bad disk"):
        _write(watched, tmp_path / "a", _staged(), threads=3)
    assert not {"head", "fsync"} & set(watched.events)


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    _write(LocalStorage(), tmp_path / "a", _staged(), threads=2)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
