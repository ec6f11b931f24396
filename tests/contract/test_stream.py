"""What every source must keep once it is streamed: one entry in SOURCES, the same tests for all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import config
from tests.helpers.data import tiny_text_corpus
from trainer.batch import TokenBatch
from trainer.config.schema import Config
from trainer.data.prepare import prepare
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.sources import Rejected, documents
from trainer.data.store import TokenStore
from trainer.data.stream import Stream, token_stream

_PACKAGE = """
class Fables:
    def __init__(self, count):
        self.count = count
    def documents(self):
        for n in range(self.count):
            yield "once there was a fox " * (1 + n % 5) + str(n)
    def digest(self):
        return f"fables-{self.count}"
"""


def _text(folder: Path) -> dict[str, Any]:
    for n in range(12):
        (folder / f"{n:02d}.txt").write_text(f"file {n}. " * (n + 3), encoding="utf-8")
    return {"kind": "files", "format": "text", "paths": [str(folder / "*.txt")]}


def _jsonl(folder: Path) -> dict[str, Any]:
    return {"kind": "files", "format": "jsonl", "paths": [str(tiny_text_corpus(folder))]}


def _custom(folder: Path) -> dict[str, Any]:
    (folder / "fables_corpus.py").write_text(_PACKAGE, encoding="utf-8")
    return {"kind": "custom", "target": "fables_corpus:Fables", "settings": {"count": 30}}


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "custom": _custom,
}


@pytest.fixture(params=SOURCES)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fables_corpus", raising=False)
    section = {
        "sources": {"it": SOURCES[request.param](tmp_path)},
        "tokenizer": {"kind": "train_bpe", "vocab_size": 300, "sample_bytes": 10_000},
        "store_root": str(tmp_path / "stores"),
        "num_workers": 1,
        "held_out_fraction": 0.1,
    }
    return config("run.trust=[fables_corpus]", data=section)


def _stream(
    made: Config, *, rank: int = 0, world: int = 1, cursor: Any = None
) -> Stream[TokenBatch]:
    plan = prepare(made, log=lambda _: None)[0]
    shape = RowShape(global_batch_size=4, micro_batch_size=1, sequence_length=8, packing=True)
    source = StreamSource("it", TokenStore.open(Path(plan.path)), 1.0)
    return token_stream(
        [source], shape=shape, seed=1, rank=rank, world_size=world, prefetch_steps=2, cursor=cursor
    )


def _rows(stream: Stream[TokenBatch], step: int) -> list[tuple[int, list[int]]]:
    return [
        (sample, b.inputs_RT[r].tolist())
        for b in stream.step(step)
        for r, sample in enumerate(b.sample_indices)
    ]


def test_documents_come_in_the_same_order_each_time_and_none_is_empty(made: Config) -> None:
    source = made.data.sources["it"]
    one, two = (
        list(documents(source, trust=made.run.trust, rejected=Rejected())) for _ in range(2)
    )
    assert one == two
    assert all(one)


def test_a_second_preparation_finds_the_first(made: Config) -> None:
    first = prepare(made, log=lambda _: None)
    assert prepare(made, log=pytest.fail) == first


def test_a_resume_anywhere_repeats_the_rows(made: Config) -> None:
    whole = _stream(made)
    rows = [_rows(whole, step) for step in range(1, 8)]
    for done in (0, 3, 6):
        again = _stream(made, cursor=whole.cursor(done))
        assert [_rows(again, step) for step in range(done + 1, 8)] == rows[done:]
        again.close()
    whole.close()


def test_ranks_are_disjoint_and_together_the_step(made: Config) -> None:
    alone = _rows(_stream(made), 3)
    ranks = [_rows(_stream(made, rank=r, world=3), 3) for r in range(3)]
    assert sorted(row for rank in ranks for row in rank) == alone
