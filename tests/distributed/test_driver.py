"""A run over several nodes and its driver: real agents on one machine, ranks without torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.driver import drive
from launch.driving.kept import Kept
from launch.driving.nodes import Node
from launch.driving.team import Team
from launch.driving.waiting import waiting_for
from launch.node.ranks_spec import RANKS_FILE, WORKER, RanksSpec, read_spec, spec_text
from launch.outcome import Outcome
from launch.run.budgets import RestartRules
from launch.run.ended import ended_of, read_ended
from launch.watch.limits import WatchRules
from tests.helpers.agent_process import PATIENCE_S, still_alive, wait_for
from tests.helpers.process_nodes import ProcessNodes
from trainer.errors import Exit, RunFolderError
from trainer.records.attempt import Stop, read_error, read_stop, write_record
from trainer.records.json_file import read_json, read_lines, write_json
from trainer.records.memory_files import MemoryFiles
from trainer.records.run_files import RunFiles

RULES = RestartRules(enabled=True, wait_s=5.0)


class Driven:
    """Two ranks a node; `behaviours` by rank or "attempt:rank", as tests/helpers/fake_worker.py."""

    def __init__(self, folder: Path, behaviours: dict[str, list[str]], **spec: object) -> None:
        self.run = RunFiles(folder / "run")
        plain = RanksSpec(
            module="tests.helpers.fake_worker",
            nodes=2,
            ranks_per_node=2,
            device="cpu",
            threads_per_rank=1,
            rendezvous_port=0,
            grace_s=10.0,
            restart=RULES,
        )
        changed = replace(plain, **spec)  # type: ignore[arg-type]
        self.spec = replace(changed, most_nodes=changed.nodes)
        path = self.run.attempt(1).root / RANKS_FILE
        path.parent.mkdir(parents=True)
        path.write_text(spec_text(self.spec))
        env = dict(os.environ) | {"FAKE_BEHAVIOUR": json.dumps(behaviours), "FAKE_HANG": "sleep"}
        self.nodes = ProcessNodes(*(f"n{k}" for k in range(self.spec.nodes)), env=env)

    def drive(self, meanwhile: Callable[[], None] | None = None) -> Outcome:
        """`meanwhile`: a test's part, in a thread of its own."""
        failed: list[BaseException] = []

        def act() -> None:
            try:
                assert meanwhile is not None
                meanwhile()
            except BaseException as e:  # said by the main thread
                failed.append(e)

        thread = threading.Thread(target=act) if meanwhile else None
        if thread:
            thread.start()
        outcome = drive(self.run, 1, self.nodes, env={})
        if thread:
            thread.join()
        if failed:
            raise failed[0]
        assert still_alive(self.run) == []
        return outcome

    def up(self, attempt: int, *ranks: int) -> None:
        root = self.run.attempt(attempt).root
        wait_for(lambda: all((root / f"up-{r}").exists() for r in ranks))

    def causes(self) -> list[str | None]:
        return [line["cause"] for line in read_lines(self.run.attempts_log)]

    def nodes_of(self, attempt: int) -> int:
        return read_spec(self.run.attempt(attempt).root / RANKS_FILE).nodes


FINISH = {str(rank): ["finish"] for rank in range(4)}
WAIT = {str(rank): ["wait"] for rank in range(4)}


def test_two_nodes_finish(tmp_path: Path) -> None:
    one = Driven(tmp_path, FINISH)
    assert one.drive() == Outcome("done", Exit.DONE, "finished at step 7")
    ended = read_json(one.run.attempt(1).ended)
    assert ended["codes"] == {"0": 0, "1": 0, "2": 0, "3": 0}
    assert one.run.ledger(1).exists()


def test_a_rank_that_dies_on_the_second_node_is_named_and_all_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("team.END_S", "kept.ANSWER_S"):  # after which agents are started anew
        monkeypatch.setattr(f"launch.driving.{limit}", PATIENCE_S)
    later = {f"2:{rank}": ["finish"] for rank in range(4)}
    one = Driven(tmp_path, WAIT | later)

    def kill() -> None:
        one.up(1, 0, 1, 2, 3)
        os.kill(int(read_json(one.run.attempt(1).root / "pids-1.json")["3"]), signal.SIGKILL)

    assert one.drive(kill).exit_code == Exit.DONE
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.kind) == (3, "Killed")
    assert one.causes() == ["crash", None]
    # The agents stayed, with what their ranks import in memory.
    assert [name for name, _ in one.nodes.started] == ["n0", "n1"]
    assert set(read_json(one.run.attempt(2).ended)["codes"].values()) == {0}


def test_an_agent_that_is_gone_between_two_attempts_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = {f"2:{rank}": ["finish"] for rank in range(4)}
    one = Driven(tmp_path, WAIT | {"3": ["exit", "3"]} | later)
    kept = Kept.team_for

    def too_late(self: Kept, *given: Any) -> Team | None:
        if self.agents:  # of the first attempt
            _, process = one.nodes.started[1]
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        return kept(self, *given)

    monkeypatch.setattr(Kept, "team_for", too_late)
    assert one.drive().exit_code == Exit.DONE
    assert one.causes() == ["crash", None]
    assert [name for name, _ in one.nodes.started] == ["n0", "n1"] * 2


@pytest.fixture
def importing(tmp_path: Path) -> Driven:
    """Ranks of which the imports never end."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys, time\nif 'trainer.standby' in sys.orig_argv: time.sleep(10000)\n"
    )
    one = Driven(tmp_path, WAIT, module=WORKER, restart=replace(RULES, standby=True))
    one.nodes.set("PYTHONPATH", str(folder))
    write_json(one.run.attempt(1).plan, {"attempt": 1, "config": None})
    return one


def test_a_stop_does_not_wait_for_imports(importing: Driven) -> None:
    """Nothing is lost with ranks that were not there yet."""
    first = importing.run.attempt(1)

    def stop() -> None:
        wait_for((first.root / "standby.log").exists)
        write_record(first.stop, Stop("user", 1.0, "longhaul stop"))

    outcome = importing.drive(stop)
    assert (outcome.action, outcome.exit_code) == ("give_up", Exit.SAVED)
    assert outcome.why == "stopped (user) before training began"
    assert not (first.root / "pids.json").exists()  # after two minutes there would be ranks


def test_an_agent_whose_driver_goes_while_ranks_import_says_so(importing: Driven) -> None:
    first = importing.run.attempt(1)
    argv = ["python", "-m", "launch.agent", str(importing.run.root), "--attempt", "1"]
    handle = importing.nodes.start(
        Node("n0", "127.0.0.1"), [*argv, "--node-rank", "0", "--driven", "127.0.0.1"], env={}
    )
    wait_for((first.root / "standby.log").exists)
    assert handle.process.stdin is not None
    handle.process.stdin.close()
    wait_for(lambda: handle.poll() is not None)
    handle.end()
    stop = read_stop(first.stop)
    assert stop is not None
    assert (stop.cause, stop.detail) == ("interrupt", "the driver went away")
    assert read_ended(ended_of(first, 0)) is not None
    assert not (first.root / "pids.json").exists()


def test_a_lost_node_is_done_without_and_taken_back_at_a_checkpoint(tmp_path: Path) -> None:
    later = {f"3:{rank}": ["finish"] for rank in range(4)}
    one = Driven(tmp_path, WAIT | later, least_nodes=1)

    def lose() -> None:
        one.up(1, 0, 1, 2, 3)
        one.nodes.lose("n0")
        one.up(2, 0, 1)
        one.nodes.present.insert(0, "n0")
        folder = one.run.checkpoints / "step-00000003"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")

    assert one.drive(lose).exit_code == Exit.DONE
    assert [one.nodes_of(attempt) for attempt in (1, 2, 3)] == [2, 1, 2]
    assert [name for name, _ in one.nodes.started] == ["n0", "n1", "n1", "n1", "n0"]
    error, stop = read_error(one.run.attempt(1).error), read_stop(one.run.attempt(2).stop)
    assert error is not None
    assert (error.rank, error.kind) == (0, "NodeLost")
    assert stop is not None
    assert (stop.cause, stop.detail) == ("resize", "n0 came")
    assert one.causes() == ["node", "preempt", None]


def test_too_few_nodes_are_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = Driven(tmp_path, FINISH, restart=RestartRules(enabled=True, wait_s=4.0))
    one.nodes.present.remove("n1")
    told = "waits for 2 nodes; there: n0"
    outcome = one.drive(lambda: wait_for(lambda: waiting_for(one.run.attempt(1)) == told))
    assert (outcome.exit_code, outcome.cause) == (Exit.FAILED, "node")
    said = capfd.readouterr().err
    assert "waiting for 2 nodes; there: n0" in said
    assert "waited 4 s in vain for 2 nodes" in said


def test_a_node_that_will_leave_is_left_in_time(tmp_path: Path) -> None:
    later = {f"2:{rank}": ["finish"] for rank in range(4)}
    one = Driven(tmp_path, WAIT | later, least_nodes=1)

    def leave() -> None:
        one.up(1, 0, 1, 2, 3)
        one.nodes.about_to_leave.add("n1")

    assert one.drive(leave).exit_code == Exit.DONE
    assert one.causes() == ["preempt", None]
    assert one.nodes_of(2) == 1
    codes = read_json(one.run.attempt(1).ended)["codes"]
    assert set(codes.values()) == {Exit.SAVED}
    (first, _) = read_lines(one.run.attempts_log)
    assert first["why"] == "stopped (drain: n1 is about to go away) and saved at step 5"


def test_a_place_that_is_gone_is_named_once_every_rank_has_saved(tmp_path: Path) -> None:
    one = Driven(tmp_path, WAIT)

    def lose() -> None:
        one.up(1, 0, 1, 2, 3)
        one.nodes.present.clear()
        one.nodes.why_gone = "the head does not answer"

    assert one.drive(lose).exit_code == Exit.FAILED
    first, second = read_lines(one.run.attempts_log)
    assert first["why"] == "stopped (drain: the head does not answer) and saved at step 5"
    assert second["why"].endswith("the head does not answer"), "and not: waited in vain"
    assert (second["action"], second["cause"]) == ("again", "node")
    codes = read_json(one.run.attempt(1).ended)["codes"]
    assert set(codes.values()) == {Exit.SAVED}


def test_a_rank_that_hangs_is_named_though_a_rank_of_another_node_waits_for_it(
    tmp_path: Path,
) -> None:
    limits = WatchRules(enabled=True, step_s=3.0, first_step_s=3.0, grace_s=0.2)
    module = "tests.helpers.beating_worker"  # rank 1, on the second node, stands still
    one = Driven(tmp_path, {}, module=module, ranks_per_node=1, watch=limits)
    assert one.drive().exit_code == Exit.DONE
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.kind, error.rank) == ("Hung", 1)
    assert "stand_still" in error.traceback
    assert one.causes() == ["hang", None]
    for rank in (0, 1):
        assert (one.run.attempt(1).stacks / f"rank-0000{rank}.txt").exists()


def test_nodes_free_their_memory_when_the_driver_gives_up(tmp_path: Path) -> None:
    """Its agents have left by then, and each of them had to leave the states to an attempt."""
    behaviours = {str(rank): ["wait"] for rank in range(4)} | {"3": ["refuse", "no way on"]}
    one = Driven(tmp_path, behaviours)
    peer = {"every": 1, "folder": str(tmp_path / "shm")}
    plan = {"run_id": "r1", "world_size": 4, "config": {"checkpoint": {"peer": peer}}}
    write_json(one.run.attempt(1).plan, plan)
    memory = MemoryFiles(tmp_path / "shm", "r1")
    (tmp_path / "shm").mkdir()
    for node in (0, 1):
        memory.enter(node)
        memory.own(node, "0001.0").mkdir(parents=True)
    assert one.drive().exit_code == Exit.STOP
    assert list((tmp_path / "shm").iterdir()) == []
    assert [name for name, _ in one.nodes.started] == ["n0", "n1"] * 2


def test_a_second_driver_of_an_attempt_is_turned_away(tmp_path: Path) -> None:
    one = Driven(tmp_path, FINISH)
    one.drive()
    with pytest.raises(RunFolderError, match=r"attempt 1 .* has been started before"):
        drive(one.run, 1, one.nodes, env={})


def test_an_agent_that_cannot_start_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = Driven(tmp_path, FINISH, rendezvous_port=port)
        outcome = one.drive()
    assert (outcome.action, outcome.exit_code) == ("give_up", Exit.REFUSED)
    said = capfd.readouterr().err
    assert "the agent on n0 started no ranks" in said
    assert f"resources.rendezvous_port: port {port} on 127.0.0.1 is taken" in said


def test_what_a_user_stopped_stays_stopped(tmp_path: Path) -> None:
    one = Driven(tmp_path, WAIT)

    def stop() -> None:
        one.up(1, 0, 1, 2, 3)
        write_record(one.run.attempt(1).stop, Stop("user", 1.0, "longhaul stop"))

    outcome = one.drive(stop)
    assert (outcome.action, outcome.exit_code) == ("give_up", Exit.SAVED)
    assert not one.run.attempt(2).root.exists()
