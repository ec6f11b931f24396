"""What a rank writes of itself, and what is read of it from outside."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from trainer.dist.heartbeat import NoPulse, PagePulse, open_pulse
from trainer.errors import WorldError
from trainer.records.pulse import (
    ENVIRONMENT,
    HEAD,
    PAGE_BYTES,
    PHASES,
    WORKED_STEPS,
    Beat,
    read_beat,
    read_worked,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seconds, moved by hand."""
    now = [100]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0] * 10**9)
    return now


def page() -> bytearray:
    return bytearray(PAGE_BYTES)


def test_a_page_says_who_is_where_and_since_when(clock: list[int]) -> None:
    memory = page()
    pulse = PagePulse(memory, stacks_signal=43)
    assert read_beat(memory) == Beat(
        beats=0, pid=os.getpid(), since=100.0, signal=43, spent=read_beat(memory).spent
    )
    clock[0] = 107
    pulse.beat("imports", 0)
    clock[0] = 110
    pulse.beat("forward", 12)
    beat = read_beat(memory)
    assert (beat.beats, beat.phase, beat.step, beat.since) == (2, "forward", 12, 110.0)
    assert beat.spent["launch"].total_s == 7.0
    assert beat.spent["imports"].longest_s == 3.0


def test_the_first_step_is_accounted_apart(clock: list[int]) -> None:
    memory = page()
    pulse = PagePulse(memory)
    for step, seconds in ((7, 30), (8, 2), (9, 1)):
        for phase in ("forward", "backward", "data", "agree", "update"):
            pulse.beat(phase, step)
            clock[0] += seconds
            assert read_beat(memory).first == (step == 7)
    pulse.beat("save", 9)
    spent = read_beat(memory).spent
    assert (spent["first"].times, spent["first"].total_s) == (5, 150.0)
    assert (spent["forward"].times, spent["forward"].longest_s) == (2, 2.0)


def test_work_before_the_first_collective_is_kept_by_step(clock: list[int]) -> None:
    memory = page()
    pulse = PagePulse(memory)
    for step in range(1, 41):
        for phase, seconds in (("forward", 2), ("backward", 5), ("data", 1), ("agree", 9)):
            pulse.beat(phase, step)  # type: ignore[arg-type]
            clock[0] += seconds
    assert read_worked(memory) == dict.fromkeys(range(41 - WORKED_STEPS, 41), 3.0)


def test_a_half_written_beat_is_not_believed(clock: list[int]) -> None:
    """A rank stopped in the middle of writing leaves two counts."""
    memory = page()
    PagePulse(memory).beat("imports", 0)
    before = read_beat(memory)
    HEAD.pack_into(memory, 0, 2, 1, PHASES.index("eval"), 9, 0, 0, 0, 1)
    assert read_beat(memory, before) is before
    assert read_beat(memory).phase == "launch"


def test_a_page_nobody_wrote_is_a_rank_not_heard_of() -> None:
    assert read_beat(page()).pid == 0


def test_without_a_watcher_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert isinstance(open_pulse(), NoPulse)


def test_a_page_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"cannot open .*gone, by which the agent watches this"):
        open_pulse(str(tmp_path / "gone"))


def test_a_beat_costs_microseconds() -> None:
    """2 us are promised, 1.4 measured; a shared machine gets more, a slip of code does not."""
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, PAGE_BYTES)
    with mmap.mmap(descriptor, PAGE_BYTES) as memory:
        pulse = PagePulse(memory)
        rounds = []
        for _ in range(20):
            began = time.perf_counter()
            for step in range(200):
                pulse.beat("forward", step)
                pulse.beat("agree", step)
            rounds.append((time.perf_counter() - began) / 400)
    os.close(descriptor)
    assert min(rounds) < 6e-6
