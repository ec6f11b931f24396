"""Many ranges at once: the same values as one by one, nothing unchecked, no memory beside them."""

from __future__ import annotations

import errno
import random
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.reader import CheckpointReader, PatientReader
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.engine.base import read_all
from trainer.errors import CheckpointError, DamagedCheckpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import decode
from trainer.storage.local import Bytes, LocalStorage, StoredFile

SHAPE = (300_000,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A step of one rank with chunks of 4 KiB: three tensors that begin anywhere in them."""
    shapes = [("a", SHAPE), ("b", (777,)), ("c", (5, 40_001))]
    engine = SliceEngine("plain", 0, 1, shapes=shapes).fill(1)
    store = CheckpointStore(tmp_path, chunk_bytes=4096)
    assert store.save(Alone(), engine, step=1, training={}).succeeded
    return tmp_path / "step-00000001"


def stored(folder: Path, storage: LocalStorage | None = None) -> StoredTensors:
    manifest = decode((folder / "manifest.json").read_bytes())
    return StoredTensors(storage or LocalStorage(), folder, manifest)


def some(step: StoredTensors, seed: int, *, number: int = 60) -> list[Fragment]:
    """Ranges anywhere, in any order, some of them over the same elements, some empty."""
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        tensor = draw.choice(list(step.tensors.values()))
        a, b = sorted(draw.randrange(tensor.elements + 1) for _ in range(2))
        b = min(b, a + draw.choice([0, 1, 5, 1024, 5000, 10**6]))
        found.append(Fragment(tensor.name, draw.choice(tensor.kinds), tensor.shape, a, b))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_ranges_read_together_are_those_read_one_by_one(folder: Path, seed: int) -> None:
    step = stored(folder)
    reader, wanted = CheckpointReader(step), some(step, seed)
    together = [torch.full((f.length,), torch.nan) for f in wanted]
    read_all(reader, list(zip(wanted, together, strict=True)))
    for f, out in zip(wanted, together, strict=True):
        whole = step.array(f.name, f.kind).reshape(-1)
        np.testing.assert_array_equal(out.numpy(), whole[f.start : f.stop])


def test_values_of_another_kind_pass_through_the_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = stored(folder)
    monkeypatch.setattr("trainer.checkpoint.reader._THROUGH_ELEMENTS", 1000)
    a, b = (Fragment("a", kind, SHAPE, 10, 290_001) for kind in ("master", "exp_avg"))
    strided, wide = torch.zeros(2 * a.length)[::2], torch.zeros(b.length, dtype=torch.float64)
    read_all(CheckpointReader(step), [(a, strided), (b, wide)])
    for f, out in ((a, strided), (b, wide)):
        whole = step.array(f.name, f.kind)
        np.testing.assert_array_equal(out.numpy(), whole[f.start : f.stop])


def test_one_flipped_bit_anywhere_in_a_needed_chunk_is_noticed(folder: Path) -> None:
    path = folder / "rank-00000.safetensors"
    good = path.read_bytes()
    step = stored(folder)
    wanted = Fragment("a", "exp_avg", SHAPE, 5000, 200_000)
    out = torch.zeros(wanted.length)
    read_all(CheckpointReader(step), [(wanted, out)])  # the range itself is found below
    at = good.index(out.numpy().tobytes())
    draw = random.Random(0)
    ends = (at, at + 4 * wanted.length - 1)
    for place in (*ends, *(draw.randrange(*ends) for _ in range(30))):
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(DamagedCheckpoint, match="does not match its checksum"):
            read_all(CheckpointReader(stored(folder)), [(wanted, out)])
    path.write_bytes(good[: at + 5000])
    with pytest.raises(DamagedCheckpoint, match="bytes instead of"):
        read_all(CheckpointReader(stored(folder)), [(wanted, out)])


class _BadDisk(LocalStorage):
    """Its files cannot be read beyond their first pages."""

    def open(self, path: Path) -> StoredFile:
        real = super().open(path)

        class Failing:
            size = real.size

            def read_into(self, offset: int, out: Bytes) -> int:
                if offset > 500_000:
                    raise OSError(errno.EIO, "Input/output error")
                return real.read_into(offset, out)

            def close(self) -> None:
                real.close()

        return Failing()


def test_a_disk_that_fails_while_it_is_read_ahead_is_an_error_and_leaves_no_thread(
    folder: Path,
) -> None:
    before = threading.active_count()
    source = PatientReader(CheckpointReader(stored(folder, _BadDisk())))
    wanted = [Fragment("a", kind, SHAPE, 0, SHAPE[0]) for kind in ("master", "exp_avg")]
    outs = [torch.full(SHAPE, torch.nan) for _ in wanted]
    read_all(source, list(zip(wanted, outs, strict=True)))
    with pytest.raises(CheckpointError, match="Input/output error"):
        source.verdict()
    assert not any(out.any() for out in outs)  # never half of a step
    assert threading.active_count() == before


def test_nothing_is_held_beside_the_values_but_the_ends_of_ranges(tmp_path: Path) -> None:
    shape = (4 << 20,)
    engine = SliceEngine("plain", 0, 1, shapes=[("a", shape)], kinds=["master"]).fill(1)
    CheckpointStore(tmp_path).save(Alone(), engine, step=1, training={})
    out = torch.empty(3 << 20)
    reader = CheckpointReader(stored(tmp_path / "step-00000001"))
    tracemalloc.start()
    read_all(reader, [(Fragment("a", "master", shape, 77, 77 + len(out)), out)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20  # of 12 MiB


class _Counting(LocalStorage):
    """Counts its reads: elsewhere each is a request."""

    reads = 0

    def open(self, path: Path) -> StoredFile:
        real, counting = super().open(path), self

        class Counted:
            size = real.size

            def read_into(self, offset: int, out: Bytes) -> int:
                counting.reads += 1
                return real.read_into(offset, out)

            def close(self) -> None:
                real.close()

        return Counted()


def test_many_small_values_side_by_side_are_one_read(tmp_path: Path) -> None:
    shapes = [(f"t{i}", (300,)) for i in range(400)]
    engine = SliceEngine("plain", 0, 1, shapes=shapes).fill(1)
    CheckpointStore(tmp_path).save(Alone(), engine, step=1, training={})
    disk = _Counting()
    step = stored(tmp_path / "step-00000001", disk)
    again = SliceEngine("plain", 0, 1, shapes=shapes)
    read_all(CheckpointReader(step), [(h.fragment, h.values) for h in again.held])
    assert not again.differs(1)
    assert disk.reads <= 4  # the header's length, the header, 1.4 MB of values
