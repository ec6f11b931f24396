"""What steps a..b consume depends on the seed and the step alone: not on ranks, cuts or resumes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.helpers.stores import counting_documents, make_store
from trainer.batch import IGNORED, TokenBatch
from trainer.data.cursor import Cursor
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.data.stream import Stream, token_stream
from trainer.errors import DataError

LENGTH = 8


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    lengths = [1 + (7 * i) % 23 for i in range(60)]
    return {
        "a": make_store(
            folder / "a",
            counting_documents(lengths),
            held_out=counting_documents([30, 5, 40], first=20_000),
            shard_tokens=200,
        ),
        "b": make_store(folder / "b", counting_documents([9] * 9, first=30_000)),
    }


def _stream(
    stores: dict[str, TokenStore],
    *,
    batch: int = 6,
    micro: int = 2,
    rank: int = 0,
    world: int = 1,
    packing: bool = True,
    prefetch: int = 0,
    cursor: dict[str, object] | None = None,
    seed: int = 5,
) -> Stream[TokenBatch]:
    sources = [StreamSource("a", stores["a"], 2.0), StreamSource("b", stores["b"], 1.0)]
    shape = RowShape(
        global_batch_size=batch, micro_batch_size=micro, sequence_length=LENGTH, packing=packing
    )
    return token_stream(
        sources,
        shape=shape,
        seed=seed,
        rank=rank,
        world_size=world,
        prefetch_steps=prefetch,
        cursor=cursor,
    )


Row = tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _rows(batches: list[TokenBatch]) -> list[Row]:
    return [
        (
            sample,
            tuple(b.inputs_RT[r].tolist()),
            tuple(b.labels_RT[r].tolist()),
            tuple(b.positions_RT[r].tolist()),
        )
        for b in batches
        for r, sample in enumerate(b.sample_indices)
    ]


def _consumed(
    stores: dict[str, TokenStore], step: int, *, world: int, **settings: object
) -> list[Row]:
    """The rows of a step over all ranks, in the order of their place in the global batch."""
    ranks = [
        _stream(stores, rank=r, world=world, **settings).step(step)  # type: ignore[arg-type]
        for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1  # ZeRO-3 needs equally many micro-steps
    in_order = [batches[m] for m in range(len(ranks[0])) for batches in ranks]
    return _rows(in_order)


def test_any_world_and_any_cut_consume_the_same_rows_in_the_same_order(
    stores: dict[str, TokenStore],
) -> None:
    draw = random.Random(1)
    for _ in range(40):
        batch, step = draw.randint(1, 17), draw.choice([1, 2, 3, 50, 10**9])
        packing = draw.random() < 0.7
        settings = {"batch": batch, "packing": packing, "seed": draw.randint(0, 3)}
        alone = _consumed(stores, step, world=1, micro=1, **settings)
        assert [row[0] for row in alone] == list(range((step - 1) * batch, step * batch))
        world, micro = draw.randint(1, 5), draw.randint(1, 5)
        cut = _consumed(stores, step, world=world, micro=micro, **settings)
        assert cut == alone, (world, micro, settings)


def test_rows_beyond_the_batch_weigh_nothing(stores: dict[str, TokenStore]) -> None:
    batches = [
        b for r in range(2) for b in _stream(stores, batch=5, micro=2, rank=r, world=2).step(1)
    ]
    assert len(batches) == 4
    assert sum(len(b.sample_indices) for b in batches) == 5
    for b in batches:
        assert b.inputs_RT.shape == b.labels_RT.shape == b.positions_RT.shape == (2, LENGTH)
        assert b.terms == int((b.labels_RT != IGNORED).sum())
        assert (b.labels_RT[len(b.sample_indices) :] == IGNORED).all()
        assert b.tokens == len(b.sample_indices) * LENGTH


@pytest.mark.parametrize("prefetch", [0, 1, 3, 40])
def test_a_resumed_stream_goes_on_as_if_nothing_happened(
    stores: dict[str, TokenStore], prefetch: int
) -> None:
    whole = _stream(stores, prefetch=prefetch)
    rows = [_rows(whole.step(s)) for s in range(1, 30)]
    cursor = whole.cursor(11)
    assert cursor == {"step": 11, "next_sample": 66, "skipped": []}
    again = _stream(stores, prefetch=prefetch, cursor=cursor, micro=1)
    assert [_rows(again.step(s)) for s in range(12, 30)] == rows[11:]
    whole.close()
    again.close()


def test_a_resume_with_another_batch_size_leaves_out_and_repeats_nothing(
    stores: dict[str, TokenStore],
) -> None:
    cursor = _stream(stores, batch=6).cursor(4)
    after = _stream(stores, batch=10, cursor=cursor)
    samples = [row[0] for step in (5, 6) for row in _rows(after.step(step))]
    assert samples == list(range(24, 44))
    assert after.cursor(6)["next_sample"] == 44


def test_skipped_ranges_are_never_consumed_and_all_else_is_once(
    stores: dict[str, TokenStore],
) -> None:
    before = Cursor.of(_stream(stores).cursor(2))
    cursor = before.skipping(20, 27).skipping(13, 15).skipping(26, 29)
    assert cursor.skipped == ((13, 15), (20, 29))
    stream = _stream(stores, cursor=cursor.as_dict())
    samples = [row[0] for step in (3, 4, 5) for row in _rows(stream.step(step))]
    expected = [s for s in range(12, 60) if not 13 <= s < 15 and not 20 <= s < 29]
    assert samples == expected[:18]
    for step in (2, 3, 4):  # and a cursor in the middle, or inside a range, goes on the same
        resumed = _stream(stores, cursor=stream.cursor(step))
        later = [r[0] for s in range(step + 1, 6) for r in _rows(resumed.step(s))]
        assert later == expected[(step - 2) * 6 : 18]


def test_skips_that_lie_behind_the_cursor_change_nothing_to_come() -> None:
    cursor = Cursor(step=3, next_sample=30).skipping(5, 9)
    assert cursor.samples(4, global_batch_size=3, rows=[0, 1, 2]).tolist() == [30, 31, 32]
    inside = Cursor(step=3, next_sample=30).skipping(28, 33)
    assert inside.samples(4, global_batch_size=3, rows=[0, 1, 2]).tolist() == [33, 34, 35]


def test_an_epoch_holds_every_row_once_and_the_next_has_another_order(
    stores: dict[str, TokenStore],
) -> None:
    source = StreamSource("a", stores["a"], 1.0)
    count = (stores["a"].train.num_tokens - 1) // LENGTH
    shape = RowShape(
        global_batch_size=count, micro_batch_size=count, sequence_length=LENGTH, packing=True
    )
    stream = token_stream([source], shape=shape, seed=1, rank=0, world_size=1, prefetch_steps=0)
    first, second = ([row[1] for row in _rows(stream.step(s))] for s in (1, 2))
    assert sorted(first) == sorted(second)
    assert len(set(first)) == count
    assert first != second


def test_a_mixture_holds_its_weights(stores: dict[str, TokenStore]) -> None:
    rows = [row for s in range(1, 31) for row in _rows(_stream(stores).step(s))]
    from_b = sum(row[1][0] >= 30_000 or row[1][1] >= 30_000 for row in rows)
    assert from_b == len(rows) // 3


def test_the_seed_decides_the_order(stores: dict[str, TokenStore]) -> None:
    one, other = (_rows(_stream(stores, seed=s).step(1)) for s in (1, 2))
    assert [r[0] for r in one] == [r[0] for r in other]
    assert [r[1] for r in one] != [r[1] for r in other]


def test_held_out_rows_are_the_same_for_every_world_and_never_trained_on(
    stores: dict[str, TokenStore],
) -> None:
    def rows(world: int, micro: int) -> list[tuple[int, ...]]:
        ranks = [
            list(_stream(stores, rank=r, world=world, micro=micro).held_out_batches(7))
            for r in range(world)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        return sorted(row[1] for batches in ranks for row in _rows(batches))

    alone = rows(1, 1)
    assert 0 < len(alone) == len(set(alone)) <= 7
    assert all(20_000 <= max(row) < 30_000 for row in alone)
    assert rows(3, 2) == rows(2, 4) == alone


def test_damage_found_by_the_reading_thread_is_raised_by_the_next_step(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", counting_documents([500])).path
    raw = bytearray((path / "train-00000.tokens").read_bytes())
    raw[100] ^= 4
    (path / "train-00000.tokens").write_bytes(raw)
    shape = RowShape(global_batch_size=2, micro_batch_size=2, sequence_length=8, packing=True)
    source = StreamSource("s", TokenStore.open(path), 1.0)
    stream = token_stream([source], shape=shape, seed=0, rank=0, world_size=1, prefetch_steps=2)
    for _ in range(2):
        with pytest.raises(DataError, match="is damaged"):
            stream.step(1)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.step(1)


def test_stores_of_two_tokenizers_do_not_mix(tmp_path: Path) -> None:
    sources = [
        StreamSource(n, make_store(tmp_path / n, [[1] * 50], tokenizer=n), 1.0) for n in "ab"
    ]
    shape = RowShape(global_batch_size=1, micro_batch_size=1, sequence_length=8, packing=True)
    with pytest.raises(DataError, match="the stores of a and b were made with different tokenizer"):
        token_stream(sources, shape=shape, seed=0, rank=0, world_size=1, prefetch_steps=0)


def test_a_source_too_small_for_one_row_is_named(tmp_path: Path) -> None:
    source = StreamSource("tiny", make_store(tmp_path / "s", [[1, 2, 3]]), 1.0)
    shape = RowShape(global_batch_size=1, micro_batch_size=1, sequence_length=8, packing=True)
    with pytest.raises(DataError, match=r"data source tiny has 4 tokens .* data\.sequence_length"):
        token_stream([source], shape=shape, seed=0, rank=0, world_size=1, prefetch_steps=0)


def test_rows_that_were_left_out_stay_out_when_the_run_goes_back_again(
    stores: dict[str, TokenStore],
) -> None:
    """To the same checkpoint, which was written before the first time and knows nothing of it."""

    def samples(stream: Stream[TokenBatch], steps: range) -> list[int]:
        return [i for step in steps for b in stream.step(step) for i in b.sample_indices]

    stream = _stream(stores)
    before = stream.cursor(2)
    stream.go_back(before, without=(18, 24))
    assert samples(stream, range(3, 5)) == [*range(12, 18), *range(24, 30)]
    stream.go_back(before, without=(24, 30))
    assert samples(stream, range(3, 5)) == [*range(12, 18), *range(30, 36)]
    again = _stream(stores, cursor=stream.cursor(3))
    assert samples(again, range(4, 5)) == [*range(30, 36)]


def test_an_unreadable_cursor_is_refused(stores: dict[str, TokenStore]) -> None:
    with pytest.raises(DataError, match="the data cursor of the checkpoint is not readable"):
        _stream(stores, cursor={"next": 3})


def test_batches_are_tensors_the_model_can_use(stores: dict[str, TokenStore]) -> None:
    batch = _stream(stores).step(1)[0]
    for tensor in (batch.inputs_RT, batch.labels_RT, batch.positions_RT):
        assert tensor.dtype is torch.int64
        assert tensor.is_contiguous()
    assert batch.terms == int((batch.labels_RT != IGNORED).sum())
