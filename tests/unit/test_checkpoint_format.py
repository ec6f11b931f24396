"""A rank's file: what any safetensors library reads, and what ours checks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.slice_engine import LAYOUTS, SHAPES, SliceEngine, expected_part
from trainer.checkpoint.checksum import ALGORITHMS, crc32c_by_table
from trainer.checkpoint.format import Identity, decode_header, encode_header
from trainer.checkpoint.held import live_blocks, plan_fragments
from trainer.checkpoint.layout import FileIndex, even_share, is_even, positions, spans
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.writer import write_rank_file
from trainer.engine.base import HeldFragment
from trainer.errors import CheckpointError, DamagedCheckpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import LogicalTensor, Manifest, RankFile, rank_file_name
from trainer.storage.local import Bytes, LocalStorage

IDENTITY = Identity(step=3, rank=0, world_size=1)


def write(folder: Path, fragments: list[Fragment], values: Iterator[Bytes], **how: Any) -> Manifest:
    """The folder of a one-rank checkpoint without its manifest, which is returned."""
    done = write_rank_file(LocalStorage(), folder, IDENTITY, fragments, values, **how)
    shapes = {f.name: f.shape for f in fragments}
    kinds = {n: tuple(sorted({f.kind for f in fragments if f.name == n})) for n in shapes}
    return Manifest(
        step=3,
        world_size=1,
        attempt=1,
        run_hash="",
        parent_step=None,
        created=0.0,
        rule="even",
        tensors=tuple(LogicalTensor(n, s, kinds[n]) for n, s in shapes.items()),
        files=(RankFile(rank_file_name(0), done.size, done.digest),),
        training={},
        origin={},
    )


def test_any_safetensors_library_reads_a_rank_file(tmp_path: Path) -> None:
    engine = SliceEngine("zero1", 1, 2).fill(7)
    plan = plan_fragments(engine)
    identity = Identity(step=7, rank=1, world_size=2)
    write_rank_file(LocalStorage(), tmp_path, identity, plan, live_blocks(engine, plan))
    found = load_file(tmp_path / rank_file_name(1))
    assert len(found) == len(plan) > 10
    for f in plan:
        assert found[f"{f.kind}:{f.start}:{f.name}"].equal(expected_part(f, 7))


def test_data_starts_on_a_page_and_nothing_follows_it(tmp_path: Path) -> None:
    engine = SliceEngine("plain", 0, 1).fill(1)
    plan = plan_fragments(engine)
    done = write_rank_file(LocalStorage(), tmp_path, IDENTITY, plan, live_blocks(engine, plan))
    content = (tmp_path / rank_file_name(0)).read_bytes()
    header = decode_header(content[:4096], file="it", size=done.size)
    assert header.data_start % 4096 == 0
    assert len(content) == done.size == header.data_start + header.data_bytes


def test_a_rank_that_holds_nothing_writes_a_file_too(tmp_path: Path) -> None:
    done = write_rank_file(LocalStorage(), tmp_path, IDENTITY, [], iter(()))
    assert load_file(tmp_path / rank_file_name(0)) == {}
    assert done.size == 4096


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("chunk_bytes", [64, 4096, 1 << 20])
def test_any_range_is_read_back(tmp_path: Path, algorithm: str, chunk_bytes: int) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(n, np.float32) for name, n in (("a", 3001), ("b", 1025))}
    fragments = [Fragment(n, "master", v.shape, 0, v.size) for n, v in values.items()]
    # Blocks of any size: the checksums do not depend on how the stream was cut.
    stream = np.concatenate(list(values.values())).view(np.uint8)
    cuts = sorted(rng.integers(0, stream.size, 9).tolist())
    blocks = iter(np.split(stream, cuts))
    manifest = write(tmp_path, fragments, blocks, chunk_bytes=chunk_bytes, algorithm=algorithm)
    stored = StoredTensors(LocalStorage(), tmp_path, manifest)
    for _ in range(60):
        name = rng.choice(["a", "b"])
        start, stop = sorted(rng.integers(0, values[name].size + 1, 2).tolist())
        out = np.empty(stop - start, np.float32)
        fragment = Fragment(name, "master", values[name].shape, start, stop)
        stored.read(fragment, out.view(np.uint8))
        assert np.array_equal(out, values[name][start:stop])


def test_checksums_are_castagnolis_by_either_code() -> None:
    known = np.frombuffer(b"123456789", dtype=np.uint8)
    assert crc32c_by_table(known) == 0xE3069283  # RFC 3720
    data = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)
    assert ALGORITHMS["crc32c"](data, 0) == crc32c_by_table(data)
    assert ALGORITHMS["crc32c"](data[99:], crc32c_by_table(data[:99])) == crc32c_by_table(data)
    assert ALGORITHMS["crc32"](known, 0) == 0xCBF43926  # another polynomial, another name


def test_blocks_that_are_not_the_fragments_are_refused(tmp_path: Path) -> None:
    fragment = Fragment("a", "master", (4,), 0, 4)
    for number, size in enumerate((12, 20)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with pytest.raises(CheckpointError, match=f"{size} bytes of values for fragments of 16"):
            write(folder, [fragment], iter([np.zeros(size, np.uint8)]))


# --- engines that contradict themselves ------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        (Fragment("scale", "master", (2,), 0, 1), "is not in the layout"),
        (Fragment("nobody", "master", (), 0, 1), "is not in the layout"),
        (Fragment("head.bias", "master", (1,), 0, 2), "ends at 2, beyond"),
        (Fragment("embed.weight", "master", (97, 11), 5, 6), "overlap or run backwards"),
        (Fragment("scale", "another", (), -1, 1), "overlap or run backwards"),
    ],
)
def test_an_engine_that_contradicts_itself_is_refused(fragment: Fragment, says: str) -> None:
    engine = SliceEngine("plain", 0, 1)
    if "ends at" in says:
        engine.held = [h for h in engine.held if h.fragment.name != fragment.name]
    engine.held.append(HeldFragment(fragment, torch.zeros(fragment.length)))
    with pytest.raises(CheckpointError, match=says):
        plan_fragments(engine)


def test_values_of_another_type_or_length_are_refused() -> None:
    engine = SliceEngine("plain", 0, 1)
    plan = plan_fragments(engine)
    held = engine.held[0]
    for values in (held.values.double(), held.values[1:]):
        engine.held[0] = HeldFragment(held.fragment, values)
        with pytest.raises(CheckpointError, match="elements of float32"):
            list(live_blocks(engine, plan))


def test_an_engine_that_changes_between_plan_and_write_is_refused() -> None:
    engine = SliceEngine("plain", 0, 1)
    plan = plan_fragments(engine)
    last = engine.held.pop()
    with pytest.raises(CheckpointError, match="ended early"):
        list(live_blocks(engine, plan))
    engine.held[:] = [last, *engine.held]
    with pytest.raises(CheckpointError, match="changed at"):
        list(live_blocks(engine, plan))


# --- headers that nobody of us wrote ---------------------------------------------------------


def header_with(change: dict[str, Any], meta: dict[str, str] | None = None) -> bytes:
    fragments = [Fragment("a", "master", (8,), 0, 8), Fragment("a", "exp_avg", (8,), 0, 8)]
    content = encode_header(IDENTITY, fragments, algorithm="crc32c", chunk_bytes=64, checksums=[1])
    table = json.loads(content[8:])
    table["__metadata__"].update(meta or {})
    for key, value in change.items():
        table.pop(key, None)
        if value is not None:
            table[key] = value
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text


def entry(first: int, last: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(last - first) // 4], "data_offsets": [first, last]} | more


@pytest.mark.parametrize(
    "content",
    [
        header_with({"master:0:a": entry(0, 32, dtype="F16")}),
        header_with({"master:0:a": entry(0, 32, shape=[4, 2])}),
        header_with({"master:0:a": entry(0, 32, shape=[9])}),
        header_with({"master:0:a": entry(-32, 32)}),
        header_with({"master:0:a": entry(4, 36)}),
        header_with({"master:0:a": None}),
        header_with({"master:0:a": None, "nonsense": entry(0, 32)}),
        header_with({"exp_avg:0:a": None, "master:4:a": entry(32, 64)}),
        header_with({"master:0:a": None, "master:0:z": entry(0, 32)}),
        header_with({}, {"format": "pt"}),
        header_with({}, {"checksum": "none"}),
        header_with({}, {"chunk_bytes": "1"}),
        header_with({}, {"chunk_bytes": "99999999999"}),
        header_with({}, {"chunk_bytes": "66"}),
        header_with({}, {"chunks": ""}),
        header_with({}, {"chunks": "0" * 80}),
        header_with({}, {"chunks": "xxxxxxxx"}),
        header_with({}, {"chunks": "0000001"}),
        header_with({}, {"shapes": "[]"}),
        header_with({}, {"rank": "first"}),
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x05\0\0\0\0\0\0\0[[[[[",
    ],
)
def test_a_header_that_cannot_be_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"rank-00000: "):
        decode_header(content, file="rank-00000", size=len(content) + 64)


def test_the_unchanged_header_of_that_test_is_accepted() -> None:
    content = header_with({})
    assert decode_header(content, file="it", size=len(content) + 64).data_bytes == 64
    with pytest.raises(DamagedCheckpoint, match="bytes, but its header speaks of"):
        decode_header(content, file="it", size=len(content) + 68)


# --- which files hold a range ----------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("cut", LAYOUTS)
def test_the_index_names_every_file_that_holds_a_range(cut: str, world_size: int) -> None:
    engines = [SliceEngine(cut, rank, world_size) for rank in range(world_size)]
    plans = [plan_fragments(engine) for engine in engines]
    even = all(is_even(plan, rank, world_size) for rank, plan in enumerate(plans))
    assert even == (cut == "zero3" or world_size == 1)
    tensors = tuple(LogicalTensor(n, s, ("master",)) for n, s in SHAPES)
    begins = dict(
        zip([t.name for t in tensors], positions(t.elements for t in tensors), strict=False)
    )
    files = tuple(
        RankFile(rank_file_name(r), 0, "0" * 32, () if even else spans(plan, begins))
        for r, plan in enumerate(plans)
    )
    assert all(len(f.spans) <= 3 for f in files)
    rule = "even" if even else "spans"
    manifest = Manifest(
        **{**_EMPTY, "rule": rule, "world_size": world_size, "files": files, "tensors": tensors}
    )
    index, rng = FileIndex(manifest), random.Random(world_size)
    named = holding = 0
    for _ in range(100):
        tensor = rng.choice([t for t in tensors if t.elements])
        start = rng.randrange(tensor.elements)
        stop = rng.randrange(start, tensor.elements) + 1
        found = index.files(tensor.name, start, stop)
        needed = [
            rank
            for rank, plan in enumerate(plans)
            if any(f.name == tensor.name and f.start < stop and start < f.stop for f in plan)
        ]
        assert found == sorted(set(found))
        assert set(needed) <= set(found)
        named, holding = named + len(found), holding + len(needed)
    if cut != "blocks":
        assert named <= 1.5 * holding  # the hint is a good one where ranks hold long ranges


def test_even_shares_tile_a_tensor() -> None:
    for elements in (0, 1, 5, 7, 64):
        for world_size in (1, 2, 3, 8):
            shares = [even_share(elements, rank, world_size) for rank in range(world_size)]
            assert sum(b - a for a, b in shares) == elements
            assert [a for a, _ in shares[1:]] == [b for _, b in shares[:-1]]


_EMPTY: dict[str, Any] = {
    "step": 1,
    "attempt": 1,
    "run_hash": "",
    "parent_step": None,
    "created": 0.0,
    "training": {},
    "origin": {},
}
