"""Who is blamed, when, and with what limit: pure judgement, and a watch over pages made by hand."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from launch.base import spec_of
from launch.node.failure import failure_text
from launch.run.liveness import own_mark, write_mark
from launch.run.status import status_of
from launch.watch.culprit import Standing, Witness, culprit, is_certain, overdue
from launch.watch.limits import Limits, WatchRules, read_longest, write_longest
from launch.watch.stacks import witness
from launch.watch.watching import POLL_S, Finding, Watch, record_hang
from tests.helpers.configs import config
from trainer.dist.heartbeat import PagePulse
from trainer.planning import make_plan
from trainer.records.attempt import error_record, read_error, write_first
from trainer.records.ledger import read_ledger, slow_ranks
from trainer.records.pulse import PHASES, Beat, Phase
from trainer.records.run_files import RunFiles

RULES = WatchRules(
    enabled=True,
    factor=5,
    start_s=100,
    load_s=200,
    first_step_s=60,
    step_s=10,
    save_s=40,
    eval_s=30,
)
WAITS, WORKS = Witness("S", waits=True), Witness("S", waits=False)
STOPPED, SILENT = Witness("T", waits=True), Witness("D", waits=None)


def standing(
    rank: int, beats: int, phase: Phase = "agree", *, stalled: float = 0.0, limit: float = 10.0
) -> Standing:
    beat = Beat(beats=beats, pid=1, phase=phase, step=5, since=1000 - stalled)
    return Standing(rank, beat, stalled, limit)


# --- who is late ---------------------------------------------------------------------------------


def test_a_rank_that_waits_for_another_is_not_judged() -> None:
    """The save of one may take long; the others stand in a collective beyond their own limit."""
    saving = standing(0, 50, "save", stalled=30, limit=40)
    waiting = standing(1, 51, "forward", stalled=29, limit=10)
    assert overdue([saving, waiting]) is None


def test_the_rank_furthest_behind_is_judged_by_its_own_phase() -> None:
    ranks = [standing(0, 51, stalled=11), standing(1, 50, "data", stalled=12), standing(2, 51)]
    late = overdue(ranks)
    assert late is not None
    assert late.rank == 1


def test_nobody_is_late_within_the_limit() -> None:
    assert overdue([standing(0, 5, stalled=9.9), standing(1, 5, stalled=1)]) is None
    assert overdue([]) is None


# --- who is to blame -----------------------------------------------------------------------------

CASES = {
    "stopped while others wait in backward": (
        {0: (20, WAITS), 1: (19, STOPPED)}, 1),
    "asleep in a data read": ({0: (21, WAITS), 1: (20, WORKS), 2: (21, WAITS)}, 1),
    "a busy loop in forward": ({0: (18, WORKS), 1: (19, WAITS)}, 0),
    "in a save, where the others wait in the same phase": (
        {0: (30, WAITS), 1: (30, WORKS), 2: (30, WAITS)}, 1),
    "in an evaluation": ({0: (31, WORKS), 1: (31, WAITS)}, 0),
    "in a load": ({0: (4, WAITS), 1: (4, WORKS)}, 1),
    "the GIL is held while the main thread leaves a collective": (
        {0: (22, WAITS), 1: (21, WAITS), 2: (22, WAITS)}, 1),
    "stopped during init": ({0: (2, WAITS), 1: (1, STOPPED)}, 1),
    "stopped after its share of a collective was sent, others still in it": (
        {0: (40, WAITS), 1: (41, STOPPED)}, 1),
    "stuck in the kernel and mute": ({0: (30, WAITS), 1: (30, SILENT)}, 1),
    "mute and behind, another is busy ahead of it": ({0: (31, WORKS), 1: (30, SILENT)}, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_right_rank_is_blamed(case: str) -> None:
    ranks, blamed = CASES[case]
    standings = [standing(rank, beats, stalled=20) for rank, (beats, _) in ranks.items()]
    seen = {rank: witness_ for rank, (_, witness_) in ranks.items()}
    random.Random(case).shuffle(standings)
    assert culprit(standings, seen).rank == blamed


def test_only_what_a_process_shows_itself_is_certain() -> None:
    assert is_certain(STOPPED)
    assert is_certain(WORKS)
    assert not is_certain(WAITS)
    assert not is_certain(SILENT)
    assert not is_certain(None)


FORWARD = """Thread 0x00007f01 (most recent call first):
  File "/v/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f02 (most recent call first):
  File "/app/trainer/faultpoints.py", line 140 in _act
  File "/app/trainer/loop.py", line 176 in _gradients
"""
REDUCING = """Current thread 0x00007f02 (most recent call first):
  File "/v/site-packages/torch/distributed/distributed_c10d.py", line 3000 in all_reduce
  File "/app/trainer/dist/world.py", line 130 in _reduce
"""
BACKWARD = """Thread 0x00007f01 (most recent call first):
  File "/v/site-packages/deepspeed/comm/comm.py", line 500 in all_reduce

Thread 0x00007f02 (most recent call first):
  File "/v/site-packages/torch/autograd/graph.py", line 800 in _engine_run_backward
"""


def test_stacks_say_whether_a_rank_waits_for_others() -> None:
    busy = witness("R", FORWARD)
    assert busy.waits is False
    assert busy.frames[0] == "_act (trainer/faultpoints.py:140)"
    assert witness("S", REDUCING).waits is True
    assert witness("S", BACKWARD).waits is True
    assert witness("D", "").waits is None


# --- limits --------------------------------------------------------------------------------------


def test_a_limit_is_the_floor_until_the_run_has_shown_more() -> None:
    limits = Limits(RULES)
    beat = Beat(phase="backward", step=9, first_step=3)
    assert limits.limit(beat) == 10
    limits.learn("step", 1.9)
    assert limits.limit(beat) == 10
    limits.learn("step", 4.0)
    limits.learn("step", 1.0)
    assert limits.limit(beat) == 20


@pytest.mark.parametrize(
    ("phase", "limit"),
    [("launch", 100), ("imports", 100), ("load", 200), ("save", 40), ("eval", 30), ("end", 40)],
)
def test_each_kind_of_phase_has_its_floor(phase: Phase, limit: float) -> None:
    assert Limits(RULES).limit(Beat(phase=phase)) == limit


def test_the_first_step_has_an_allowance() -> None:
    limits = Limits(RULES, {"step": 3.0})
    assert limits.limit(Beat(phase="forward", step=3, first_step=3)) == 60
    assert limits.limit(Beat(phase="save", step=3, first_step=3)) == 40
    assert limits.limit(Beat(phase="forward", step=4, first_step=3)) == 15


def test_no_limit_is_above_the_ceiling() -> None:
    rules = WatchRules(enabled=True, step_s=10, ceiling_s=50)
    assert Limits(rules, {"step": 1000.0}).limit(Beat(phase="data", step=2)) == 50


def test_a_large_model_may_load_for_longer() -> None:
    def load_s(*overrides: str) -> float:
        plan = make_plan(
            config("launch=local", *overrides),
            attempt=1,
            run_id="r",
            stores=(),
            device="cpu",
            cores=2,
            vocab_size_of_tokenizer=None,
        )
        return Limits(spec_of(plan).watch).limit(Beat(phase="load"))

    assert load_s() == 900
    large = ("model=llama3_8b", "data/tokenizer=pretrained", "data.tokenizer.path=x")
    shared = ("resources.ranks_per_node=4", "batch.micro_batch_size=4")
    assert 1200 < load_s(*large, *shared) < 1205  # 8.03 G x 12 bytes / 4 ranks / 20 MB/s
    assert load_s(*large) == 1798  # the collectives' time-out, less what finding it takes


def test_a_restart_knows_what_was_learned_and_another_world_does_not(tmp_path: Path) -> None:
    path = tmp_path / "watch.json"
    write_longest(path, {"step": 2.5}, world_size=2)
    assert read_longest(path, world_size=2) == {"step": 2.5}
    assert read_longest(path, world_size=3) == {}
    path.write_text("{")
    assert read_longest(path, world_size=2) == {}


# --- the watch itself ----------------------------------------------------------------------------


class Rig:
    """Two ranks whose beats the test makes; a clock that it moves. No process is signalled."""

    def __init__(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        rules: WatchRules = RULES,
        ranks: int = 2,
    ) -> None:
        self.run = RunFiles(root)
        self.files = self.run.attempt(1)
        self.files.root.mkdir(parents=True, exist_ok=True)
        self.watch = Watch(self.files, ranks=range(ranks), rules=rules, world_size=ranks)
        self.pulses = []
        self.now = float(round(time.monotonic()))  # whole: its sums have no last digit
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.now * 1e9))
        for rank in range(ranks):
            # This process's pid stands in each page; without a signal it is asked for nothing.
            self.pulses.append(PagePulse(self.watch._watched[rank].memory))
            self.watch.started(rank, os.getpid())

    def beat(self, phase: Phase, step: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.pulses)):
            self.pulses[rank].beat(phase, step)

    def until(self, seconds: float, every: float = POLL_S) -> Finding | None:
        """Poll until so many seconds have passed, or there is a finding."""
        end = self.now + seconds
        while self.now < end:
            self.now += every
            if (finding := self.watch.poll(self.now)) is not None:
                return finding
        return None

    def events(self) -> list[str]:
        return [event.event for event in read_ledger(self.run.ledger(0))]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(tmp_path / "run", monkeypatch)
    made.beat("forward", 1)
    made.beat("forward", 2)
    made.until(1)
    return made


def test_a_hang_is_found_within_a_second_of_its_limit_and_told_once(rig: Rig) -> None:
    rig.beat("agree", 2, 0)
    began = rig.now
    finding = rig.until(20)
    assert finding is not None
    assert 9 <= rig.now - began <= 10 + POLL_S  # a second has gone before
    assert (finding.culprit_rank, finding.phase, finding.step) == (1, "forward", 2)
    assert finding.text.startswith("hung in forward of step 2 for 10.")
    assert "the limit is 10.0 s; rank 0 waits for it" in finding.text
    assert rig.until(20) is None
    record_hang(rig.files, finding)
    error = read_error(rig.files.error)
    assert error is not None
    assert (error.kind, error.rank, error.step, error.exit_code) == ("Hung", 1, 1, 76)
    assert failure_text(rig.files).startswith("rank 1 hung in forward of step 2 for 10.")
    assert rig.events().count("hang") == 1


def test_a_hang_is_found_though_nothing_can_be_written(rig: Rig) -> None:
    rig.files.stacks.write_text("a file in the folder's place")
    rig.run.ledger(0).unlink()
    rig.run.ledger(0).parent.rmdir()
    rig.run.ledger(0).parent.write_text("likewise")
    finding = rig.until(20)
    assert finding is not None
    assert "hung in forward of step 2" in finding.text


def test_a_rank_that_told_its_error_and_then_hung_keeps_its_words(rig: Rig) -> None:
    rig.beat("agree", 2, 0)
    own = error_record(ValueError("row 17 is empty"), rank=1, step=1)
    write_first(rig.files.error, own)
    finding = rig.until(20)
    assert finding is not None
    record_hang(rig.files, finding)
    assert read_error(rig.files.error) == own


def test_progress_is_no_hang(rig: Rig) -> None:
    for step in range(3, 10):
        rig.beat("forward", step)
        assert rig.until(9) is None


def test_a_machine_that_stood_still_accuses_nobody(rig: Rig) -> None:
    rig.now += 3600  # the watch itself was not run
    assert rig.until(8.5) is None
    assert rig.until(2) is not None


def test_time_in_which_the_machine_stood_still_is_not_learned(rig: Rig) -> None:
    rows = rig.pulses[0]._rows
    rig.now += 100
    rig.watch.poll(rig.now)
    rig.beat("backward", 2)
    rig.until(1)
    assert rows[PHASES.index("forward")][2] > 100e9
    assert rig.watch._limits.longest["step"] < 5


def test_what_is_learned_outlives_the_attempt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.until(3)  # and one before
    rig.beat("backward", 2)
    rig.until(1)
    rig.watch.close(exit_code=76, why="killed")
    again = Rig(rig.run.root, monkeypatch)
    again.beat("forward", 3)
    again.beat("forward", 4)
    again.beat("data", 4, 0)
    assert again.until(18) is None  # 5 x 4 s
    assert again.until(4) is not None


def test_a_rank_that_has_left_is_not_judged(rig: Rig) -> None:
    rig.beat("end", 2, 0)
    rig.watch.ended(1, 0)
    assert rig.until(39) is None
    finding = rig.until(4)
    assert finding is not None
    assert finding.culprit_rank == 0


def test_a_rank_that_never_speaks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path / "run", monkeypatch)
    memory = rig.watch._watched[1].memory
    memory[:] = bytes(len(memory))
    rig.watch.started(1, os.getpid())
    rig.beat("imports", 0, 0)
    rig.beat("meet", 0, 0)
    finding = rig.until(110)
    assert finding is not None
    assert (finding.culprit_rank, finding.phase) == (1, "launch")
    assert "it gave no stacks" in finding.text


def test_a_watch_that_is_off_keeps_the_ledger_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "run", monkeypatch, rules=WatchRules(enabled=False))
    rig.beat("forward", 1)
    assert rig.until(5000, every=1.0) is None
    rig.watch.close(exit_code=0, why="done")
    assert rig.events()[0] == "attempt"
    assert rig.events()[-2:] == ["spent", "ended"]


def test_polling_costs_microseconds_a_rank(rig: Rig) -> None:
    rounds = []
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(20):
            rig.now += 0.001
            rig.watch.poll(rig.now)
        rounds.append((time.perf_counter() - began) / 20 / 2)
    assert min(rounds) < 1e-3


def test_a_straggler_stands_in_the_ledger(rig: Rig) -> None:
    for step in range(3, 30):
        for rank in (0, 1):
            rig.pulses[rank]._since -= 10**8 * (1 + 2 * rank)
            rig.pulses[rank].beat("agree", step)
            rig.pulses[rank].beat("forward", step + 1)
    rig.until(1)
    rig.watch.close()
    (event,) = [e for e in read_ledger(rig.run.ledger(0)) if e.event == "straggler"]
    assert event.facts["rank"] == 1
    assert 2.5 < event.facts["ratio"] < 3.5
    assert slow_ranks(read_ledger(rig.run.ledger(0))) == {1: event.facts["ratio"]}
    write_mark(rig.files.agent, own_mark())
    assert f"; rank 1 is {event.facts['ratio']:.1f} x slower than" in status_of(rig.run).why
    rig.watch.ledger.write("well", rank=1)
    assert slow_ranks(read_ledger(rig.run.ledger(0))) == {}
