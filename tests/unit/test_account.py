"""Where a run's wall time went: attempts played through a real watch, on a clock moved by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch.watch.limits import WatchRules
from launch.watch.watching import POLL_S, Watch
from trainer.dist.heartbeat import PagePulse
from trainer.records.account import CATEGORIES, Account, account
from trainer.records.ledger import read_ledger
from trainer.records.pulse import Phase
from trainer.records.run_files import RunFiles

RULES = WatchRules(enabled=True, step_s=10, first_step_s=60)
STEP: tuple[tuple[Phase, float], ...] = (
    ("forward", 1.0), ("backward", 2.0), ("data", 0.5), ("agree", 0.25), ("update", 0.25),
)  # fmt: skip
STEP_S = 4.0


class Play:
    """One run of one rank."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.run = RunFiles(root)
        self.attempts = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.now * 1e9))

    def begin(self, *, launch: float = 3.0) -> None:
        self.attempts += 1
        files = self.run.attempt(self.attempts)
        files.root.mkdir(parents=True)
        self.watch = Watch(files, ranks=[0], rules=RULES, world_size=1)
        self.watch.started(0, os.getpid())
        self.pass_(launch)
        self.pulse = PagePulse(self.watch._watched[0].memory)
        for phase, seconds in (("imports", 5.0), ("meet", 1.0), ("build", 2.0), ("load", 4.0)):
            self.do(phase, 0, seconds)  # type: ignore[arg-type]

    def do(self, phase: Phase, step: int, seconds: float) -> None:
        self.pulse.beat(phase, step)
        self.pass_(seconds)

    def steps(self, first: int, last: int, *, warm_up: float = 6.0) -> None:
        for step in range(first, last + 1):
            for phase, seconds in STEP:
                extra = warm_up if step == first and phase == "forward" else 0.0
                self.do(phase, step, seconds + extra)

    def pass_(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.watch.poll(self.now) is None:
            self.now = min(self.now + POLL_S, end)

    def end(self, code: int, *, teardown: float = 1.5) -> None:
        self.watch.ended(0, code)
        self.now += teardown
        self.watch.close(exit_code=code)

    def account(self) -> Account:
        found = account(self.run.root)
        events = read_ledger(self.run.ledger(0))
        wall_s = events[-1].clock - events[0].clock
        assert found.wall_s == pytest.approx(wall_s, rel=0.01)
        assert sum(found.seconds.values()) == pytest.approx(wall_s, rel=0.01)
        assert set(found.seconds) == set(CATEGORIES)
        assert min(found.seconds.values()) >= 0
        return found


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return Play(tmp_path / "run", monkeypatch)


def test_a_run_without_accidents(play: Play) -> None:
    play.begin()
    play.steps(1, 10)
    play.do("save", 10, 7.0)
    play.do("eval", 10, 9.0)
    play.do("end", 10, 0.5)
    play.end(0)
    found = play.account()
    assert found.seconds == pytest.approx(
        dict.fromkeys(CATEGORIES, 0.0)
        | {"launch": 3, "imports": 5, "meet": 1, "build": 2, "load": 4, "warm_up": 6}
        | {"step": 10 * STEP_S, "save": 7, "eval": 9, "teardown": 2},
        abs=0.02,
    )
    assert (found.steps, found.steps_redone) == (10, 0)
    assert found.goodput == pytest.approx(40 / found.wall_s, abs=0.01)


def test_steps_that_are_done_again_are_not_useful(play: Play) -> None:
    play.begin()
    play.steps(1, 10)
    play.do("forward", 11, 0.5)
    play.end(-9)
    play.now += 20
    play.begin()
    play.steps(6, 15)  # the last checkpoint was step 5
    play.do("end", 15, 0.0)
    play.end(0)
    found = play.account()
    assert found.seconds["redone"] == pytest.approx(5 * STEP_S, abs=0.2)
    assert found.seconds["step"] == pytest.approx(15 * STEP_S + 0.5, abs=0.3)
    assert found.seconds["idle"] == pytest.approx(20, abs=0.01)
    assert (found.steps, found.steps_redone) == (20, 5)


def test_going_back_within_an_attempt_is_doing_again(play: Play) -> None:
    play.begin()
    play.steps(1, 10)
    play.do("load", 10, 2.0)
    play.steps(6, 12, warm_up=0.0)
    play.do("end", 12, 0.0)
    play.end(0)
    found = play.account()
    assert (found.steps, found.steps_redone) == (17, 5)
    assert found.seconds["redone"] == pytest.approx(5 * STEP_S, abs=0.1)
    assert found.seconds["step"] == pytest.approx(12 * STEP_S, abs=0.1)
    assert found.seconds["load"] == pytest.approx(6, abs=0.01)


def test_a_hang_is_detection_until_it_was_found(play: Play) -> None:
    play.begin()
    play.steps(1, 3)
    play.pulse.beat("forward", 4)
    while play.watch.poll(play.now) is None:
        play.now += POLL_S
    play.end(-9, teardown=5)
    found = play.account()
    # its limit is five times the backward of 2 s, which is the floor too
    assert found.seconds["detection"] == pytest.approx(10, abs=1.5)
    assert found.seconds["teardown"] == pytest.approx(5, abs=0.1)
    assert found.steps == 3


def test_what_an_agent_that_was_killed_could_not_write_is_unknown(play: Play) -> None:
    play.begin()
    play.steps(1, 40)  # lines of the ledger come once a minute
    last = read_ledger(play.run.ledger(0))[-1]
    assert last.event == "spent"
    with play.run.ledger(0).open("a") as file:
        file.write('{"event": "spe')
    play.now += 80
    play.begin()
    play.steps(31, 50)
    play.do("end", 50, 0.0)
    play.end(0)
    found = play.account()
    assert found.seconds["unknown"] == 60
    assert found.seconds["idle"] > 20
    assert found.steps_redone > 0


def test_an_attempt_that_never_spoke_was_launching(play: Play, tmp_path: Path) -> None:
    files = play.run.attempt(1)
    files.root.mkdir(parents=True)
    play.watch = Watch(files, ranks=[0], rules=RULES, world_size=1)
    play.watch.started(0, os.getpid())
    play.now += 12
    play.end(1, teardown=0)
    assert play.account().seconds["launch"] == pytest.approx(12, abs=0.01)


def test_a_run_without_a_ledger_is_an_account_of_nothing(tmp_path: Path) -> None:
    assert account(tmp_path).wall_s == 0
