"""An agent whose ranks hang: found, named, ended, started again; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch.node.ranks_spec import RANKS_FILE, read_spec, spec_text
from launch.run.budgets import RestartRules
from launch.watch.limits import WatchRules
from tests.helpers.agent_process import Attempt, still_alive, wait_for
from tests.helpers.beating_worker import HANGS_AT, STEPS
from trainer.records.account import account
from trainer.records.attempt import read_done, read_error
from trainer.records.json_file import read_lines
from trainer.records.ledger import read_ledger

LIMIT_S = 3.0
LATE_S = 60.0  # on a machine with much else to do; what a second is worth, the drills measure
RULES = WatchRules(enabled=True, step_s=LIMIT_S, first_step_s=200, factor=1.0)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    """Starts an agent with two beating ranks, one of which stands still."""
    made: list[Attempt] = []

    def start(how: str, *, restart: bool = False, watch: WatchRules = RULES) -> Attempt:
        one = Attempt(tmp_path, ["-"], ["-"], restart=RestartRules(enabled=restart))
        path = one.files.root / RANKS_FILE
        module = "tests.helpers.beating_worker"
        path.write_text(spec_text(replace(read_spec(path), module=module, watch=watch)))
        one.env["FAKE_HANG"] = how
        made.append(one.start())
        return one

    yield start
    for each in made:
        assert each.process is not None
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()
        wait_for(lambda attempt=each: not still_alive(attempt.run))


@pytest.mark.parametrize("how", ["sleep", "spin", "gil", "stop"])
def test_a_hung_rank_is_found_after_its_limit_and_named(run, how):
    one = run(how)
    code, _, err = one.end()
    assert code == 76
    assert f"rank 1 hung in forward of step {HANGS_AT}" in err
    assert "rank 0 waits for it" in err
    assert "stand_still (helpers/beating_worker.py:" in err or how == "stop"
    error = read_error(one.files.error)
    assert (error.kind, error.rank, error.step) == ("Hung", 1, HANGS_AT - 1)
    hung = float((one.files.root / "hangs").read_text())
    assert LIMIT_S - 0.1 < error.time - hung < LIMIT_S + LATE_S
    assert "most recent call first" in (one.files.stacks / "rank-00000.txt").read_text()
    assert "stand_still" in (one.files.stacks / "rank-00001.txt").read_text()
    assert (one.files.stacks / "rank-00001.txt").stat().st_mode & 0o777 == 0o600
    (line,) = read_lines(one.run.attempts_log)
    assert "hung in forward" in line["why"]
    assert not still_alive(one.run)


def test_a_run_that_hung_goes_on_and_its_time_is_accounted_for(run):
    one = run("stop", restart=True)
    code, _, err = one.end()
    assert code == 0, err
    assert read_done(one.run.attempt(2).done).step == STEPS
    events = [(e.attempt, e.event) for e in read_ledger(one.run.ledger(0))]
    assert [e for e in events if e[1] in ("attempt", "hang", "ended")] == [
        (1, "attempt"), (1, "hang"), (1, "ended"), (2, "attempt"), (2, "ended"),
    ]  # fmt: skip
    found = account(one.run.root)
    assert LIMIT_S - 0.1 < found.seconds["detection"] < LIMIT_S + LATE_S
    assert found.steps == STEPS + HANGS_AT - 1
    assert found.steps_redone == HANGS_AT - 1
    clocks = [e.clock for e in read_ledger(one.run.ledger(0))]
    assert found.wall_s == pytest.approx(clocks[-1] - clocks[0], rel=0.01)


def test_ranks_that_do_not_hang_are_left_alone(run):
    one = run("", watch=replace(RULES, step_s=100.0))
    code, _, _ = one.end()
    assert code == 0
    assert not one.files.stacks.exists()
    assert "hang" not in [e.event for e in read_ledger(one.run.ledger(0))]


def test_a_watch_that_is_off_finds_nothing(run):
    one = run("sleep", watch=WatchRules(enabled=False))
    wait_for((one.files.root / "hangs").exists)
    with pytest.raises(Exception, match="timed out"):
        one.process.communicate(timeout=LIMIT_S + 2)
    assert not one.files.error.exists()


def test_a_killed_agent_leaves_no_shared_memory(run):
    """The pages have no name: they go with the last process that holds them."""
    one = run("sleep", watch=WatchRules(enabled=False))
    wait_for((one.files.root / "hangs").exists)
    held = set(Path(f"/proc/{one.process.pid}/maps").read_text().split())
    assert [page for page in held if "longhaul" in page]
    one.process.kill()
    one.process.communicate()
    wait_for(lambda: not still_alive(one.run))
    assert not [page for page in held if page.startswith("/dev/shm/") and Path(page).exists()]


def test_hung_ranks_are_left_to_a_debugger_for_as_long_as_was_asked(run):
    one = run("sleep", watch=replace(RULES, grace_s=1.5))
    assert one.end()[0] == 76
    clocks = {e.event: e.clock for e in read_ledger(one.run.ledger(0))}
    assert 1.5 <= clocks["rank_ended"] - clocks["hang"] < LATE_S
