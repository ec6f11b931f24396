"""Bookkeeping with thousands of ranks that are not there: small, and quick enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint_scale import LIMIT_S, measure

_BUSY = 10  # times slower than a machine without other work: the benchmark holds the promise


@pytest.mark.parametrize(("ranks", "rule"), [(1024, "even"), (1024, "spans"), (16384, "spans")])
def test_a_commit_of_thousands_of_ranks(tmp_path: Path, ranks: int, rule: str) -> None:
    found = measure(tmp_path, ranks, rule=rule)
    assert found.commit_s < _BUSY * LIMIT_S
    assert found.decode_s < _BUSY * LIMIT_S
    assert found.bytes_a_rank <= 200
    assert found.rows_bytes <= 200 * ranks  # what rank 0 gathers
    assert found.files_opened == 1  # by a rank that loads what a rank saved
