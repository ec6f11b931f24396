"""After a failure: the next attempt on the same node, how often, and who may write meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.run.budgets import RestartRules
from launch.run.lease import read_beat
from launch.run.liveness import read_mark
from launch.run.run_folder import own, owner
from tests.helpers.agent_process import Attempt, still_alive, until_stopped, wait_for
from trainer.records.attempt import Stop, read_error, write_record
from trainer.records.json_file import read_json, read_lines, write_json

AGAIN = RestartRules(enabled=True)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    made: list[Attempt] = []

    def make(*behaviours: list[str], **given: object) -> Attempt:
        given = {"restart": AGAIN} | given
        made.append(Attempt(tmp_path, *behaviours, **given))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.process.kill()
            each.process.communicate()
        wait_for(lambda run=each.run: not still_alive(run))


def test_a_rank_that_dies_costs_one_attempt(agent):
    one = agent(["finish"], ["finish"], later={"1:0": ["wait"], "1:1": ["die"]})
    plan = {"attempt": 1, "world_size": 2, "config": {"steps": {"total": 7}}}
    write_json(one.files.plan, plan)
    code, _, err = one.start().end()
    assert code == 0, err
    assert err.startswith(
        "rank 1 was killed by signal 9 (SIGKILL); attempt 2 goes on from the start: "
        "nothing was saved yet\n"
    )
    lines = list(read_lines(one.run.attempts_log))
    assert [(x["attempt"], x["exit_code"], x["cause"]) for x in lines] == [
        (1, 76, "crash"),
        (2, 0, None),
    ]
    second = one.run.attempt(2)
    assert read_json(second.plan) == plan | {"attempt": 2}
    assert read_json(second.root / "restart.json")["restart_of"] == 1
    assert owner(one.run) == 2
    mark = read_mark(second.agent)
    assert mark is not None
    assert mark.pid == one.process.pid
    assert not still_alive(one.run)


def test_a_state_nothing_goes_on_from_is_set_aside_once_then_given_up(agent):
    one = agent(["die", "50", "100"], ["wait"])
    code, _, err = one.start().end()
    assert code == 79, err
    assert len(list(one.run.attempts.iterdir())) == 6
    assert err.count("goes on from step 100") == 4  # it is saved again after the step back
    assert err.count("attempt 4 goes on from step 50") == 1
    (parked,) = (one.run.checkpoints / "quarantine").iterdir()
    assert parked.name == "step-00000100.1"
    assert "3 attempts in a row without a new checkpoint" in (parked / "why.txt").read_text()
    restart = read_json(one.run.attempt(4).root / "restart.json")
    assert (restart["from_step"], restart["parked"]) == (
        50,
        "checkpoints/quarantine/step-00000100.1",
    )


def test_a_step_back_that_did_not_help_is_undone(agent):
    later = {f"{n}:0": ["die"] for n in (2, 3, 4, 5, 6)}
    one = agent(["die", "50", "100"], ["wait"], later=later)
    code, _, err = one.start().end()
    assert code == 79, err
    assert "step-00000100 was set aside in vain and is back" in err
    assert sorted(p.name for p in one.run.checkpoints.iterdir() if p.name != "quarantine") == [
        "step-00000050",
        "step-00000100",
    ]
    assert [p.name for p in (one.run.checkpoints / "step-00000100").iterdir()] == ["manifest.json"]


def test_what_only_a_person_can_mend_is_not_tried_again(agent):
    one = agent(["refuse", "shard 3 has a flipped byte"])
    assert one.start().end()[0] == 78
    assert not one.run.attempt(2).root.exists()


def test_a_stop_is_not_answered_by_a_restart(agent):
    one = agent(["wait"], ["hang"], grace_s=0.5).start().until_up()
    one.signal(signal.SIGTERM)
    assert one.end()[0] == 76
    assert not one.run.attempt(2).root.exists()


def test_a_stop_that_was_asked_for_during_a_restart_is_heeded(agent):
    one = agent(["wait"], ["wait"], later={"1:1": ["die"]}).start()
    wait_for(lambda: (one.run.attempt(2).root / "up-1").exists())
    write_record(one.files.stop, Stop(cause="user", time=time.time(), detail="longhaul stop"))
    one.signal(signal.SIGTERM)
    assert one.end()[0] == 75
    lines = list(read_lines(one.run.attempts_log))
    assert [(x["attempt"], x["action"], x["cause"]) for x in lines][1:] == [(2, "give_up", "user")]


def test_once_leaves_the_next_attempt_to_somebody_else(agent):
    one = agent(["raise", "no"])
    one.arguments = ["--once"]
    assert one.start().end()[0] in (76, 78)
    assert not one.run.attempt(2).root.exists()


def test_ctrl_c_twice_ends_a_run_that_is_being_restarted(agent):
    one = agent(["hang"], ["hang"], later={"1:1": ["die"]}).start()
    wait_for(lambda: (one.run.attempt(2).root / "up-1").exists())
    one.signal(signal.SIGINT)
    wait_for(one.run.attempt(2).stop.exists)
    one.signal(signal.SIGINT)
    assert one.end()[0] == 130


def test_an_attempt_is_one_try(agent):
    one = agent(["finish"])
    assert one.start().end()[0] == 0
    code, _, err = one.start().end()
    assert code == 78
    assert "attempt 1 of " in err
    assert "has been started before; longhaul resume makes the next one" in err


def test_an_agent_whose_run_was_taken_over_ends_its_ranks_at_once(agent):
    one = agent(["hang"], ["hang"], grace_s=600.0).start().until_up()
    own(one.run, 2)
    code, _, err = one.end()  # it does not wait for the time that ranks have to save
    assert code == 78
    assert "attempt 1 may no longer write to this run: attempt 2 (process " in err
    error = read_error(one.files.error)
    assert error is not None
    assert error.kind == "Superseded"
    assert not one.run.attempt(2).root.exists()


def test_the_heartbeat_counts_while_the_agent_lives(agent):
    one = agent(["wait"]).start().until_up()
    first = read_beat(one.files)
    wait_for(lambda: read_beat(one.files) != first)
    os.kill(one.process.pid, signal.SIGSTOP)
    until_stopped(one.process.pid)
    stopped = read_beat(one.files)
    time.sleep(1.5)
    assert read_beat(one.files) == stopped
    os.kill(one.process.pid, signal.SIGCONT)
    one.signal(signal.SIGTERM)
    assert one.end()[0] == 75
