"""What a person sees while data is prepared."""

from __future__ import annotations

import io

from trainer.data.progress import Progress

_MB = 2**20


def test_the_rate_counts_what_this_process_did_and_tells_the_time_left() -> None:
    progress = Progress("prepare mine", total_bytes=100 * _MB, already=20 * _MB)
    line = progress.line(60 * _MB, elapsed_s=10.0)
    assert "60.0 MiB  4.0 MiB/s" in line
    assert " 60%  0:10 left" in line


def test_an_end_is_said_to_be_one() -> None:
    out = io.StringIO()
    Progress("prepare mine", total_bytes=2 * _MB, stream=out).show(_MB, last=True)
    assert "done in 0:00" in out.getvalue()
    assert "left" not in out.getvalue()
