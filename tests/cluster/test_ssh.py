"""Runs over several machines by ssh: real sshd, real agents, ranks without torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.nodes import Lab, allowed, machines
from tests.helpers.ssh_runs import SshRun, agent_of
from trainer.errors import Exit
from trainer.records.attempt import read_error, read_stop
from trainer.records.json_file import read_json

pytestmark = pytest.mark.cluster

FINISH = {str(rank): ["finish"] for rank in range(6)}
WAIT = {str(rank): ["wait"] for rank in range(6)}
SECRET = "longhaul-sentinel-never-to-be-written"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with machines(tmp_path_factory.mktemp("lab"), 3) as made:
        yield made


@pytest.fixture(autouse=True)
def _switched_on(lab: Lab) -> Iterator[None]:
    yield
    for node in lab.nodes:
        if not node.pid:
            node.boot()


def finishing(*attempts: int) -> dict[str, list[str]]:
    return {f"{attempt}:{rank}": ["finish"] for attempt in attempts for rank in range(6)}


def save(run: SshRun, step: int) -> None:
    folder = run.run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def nothing_left(lab: Lab, run: SshRun, *, switched_off: int = 0) -> None:
    """`switched_off`: agents whose machine lost its power, and with it the hand that tidies up."""
    run.until_over()
    wait_for(lambda: len(list(lab.temp.iterdir())) <= switched_off)
    for folder in lab.temp.iterdir():
        folder.rmdir()  # empty, or this fails
    assert [node.sh("ls /dev/shm") for node in lab.nodes if node.pid] == [""] * len(lab.nodes)


def test_a_run_on_two_machines_from_a_third(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(
        lab, tmp_path, "one", behaviours=FINISH, env={"WANDB_API_KEY": SECRET}, passed=("WANDB_*",)
    )
    said = one.train()
    assert "one: attempt 1 begins on node1, node2, carried by process" in said
    one.until_over()
    assert read_json(one.run.attempt(1).ended)["codes"] == dict.fromkeys("0123", 0)
    status = one.type("status", str(one.run.root))
    assert "finished" in status.stdout
    hosts = one.type("logs", str(one.run.root), "--rank", "3")
    assert hosts.returncode == 0
    ours = [path for path in one.folder.rglob("*") if path.is_file()]
    assert not [path for path in ours if SECRET.encode() in path.read_bytes()]
    nothing_left(lab, one)


def test_a_rank_killed_on_the_second_machine(lab: Lab, tmp_path: Path) -> None:
    key = {"WANDB_API_KEY": SECRET}
    one = SshRun(
        lab, tmp_path, "killed", behaviours=WAIT | finishing(2), env=key, passed=("WANDB_*",)
    )
    one.train()
    one.up(1, 4)
    rank = one.pid(2, node=1)
    assert SECRET in lab.node("node2").sh(f"tr '\\0' '\\n' < /proc/{rank}/environ")
    assert SECRET not in lab.login.sh("cat /proc/[0-9]*/cmdline 2>/dev/null || true")
    lab.node("node2").sh(f"kill -9 {rank}")
    one.until_over()
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.kind, error.host) == (2, "Killed", "node2")
    assert [line["cause"] for line in one.attempts()] == ["crash", None]
    nothing_left(lab, one)


def test_memory_is_given_back_on_all_machines_when_the_run_gives_up(
    lab: Lab, tmp_path: Path
) -> None:
    one = SshRun(lab, tmp_path, "freed", behaviours=WAIT)
    one.train("checkpoint.peer.every=1")
    one.up(1, 4)
    one.has_no_way_on()
    memory = one.put_states_in_memory()
    lab.node("node2").sh(f"kill -9 {one.pid(2, node=1)}")
    one.until_over()
    assert [line["action"] for line in one.attempts()] == ["give_up"]
    for node in lab.nodes[:2]:
        node.sh(f"! test -e {memory}")


def test_a_machine_switched_off_is_gone_on_without_and_taken_back(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "off", behaviours=WAIT | finishing(3))
    one.train("resources.min_nodes=1", "launch.silent_s=12")
    one.up(1, 4)
    begun = time.monotonic()
    lab.node("node1").power_off()  # silently: no connection is closed
    one.up(2, 2)
    assert time.monotonic() - begun < allowed(180.0)
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.kind) == (0, "NodeLost")
    assert "was lost with node node1" in error.message
    assert one.spec(2)["nodes"] == 1
    lab.node("node1").boot()
    save(one, 3)
    one.until_over()
    assert one.spec(3)["nodes"] == 2
    stop = read_stop(one.run.attempt(2).stop)
    assert stop is not None
    assert (stop.cause, stop.detail) == ("resize", "node1 came")
    assert [line["cause"] for line in one.attempts()] == ["node", "preempt", None]
    assert [line["world_size"] for line in one.attempts()] == [4, 2, 4]
    nothing_left(lab, one, switched_off=1)


def test_a_machine_cut_from_the_network_may_not_write_any_more(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "cut", behaviours=WAIT | finishing(2))
    one.train("resources.min_nodes=1", "launch.silent_s=12")
    one.up(1, 4)
    lab.node("node2").cut()
    try:
        one.until_over()  # its agent sees in the shared folder that another attempt owns the run
    finally:
        lab.node("node2").join()
    assert [line["cause"] for line in one.attempts()] == ["node", None]


def test_agents_save_and_stop_when_their_driver_is_killed(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "driverless", behaviours=WAIT | finishing(2))
    one.train()
    one.up(1, 4)
    one.kill_driver()
    one.until_over()
    assert set(read_json(one.run.attempt(1).root / "ended-1.json")["codes"].values()) == {75}
    one.resume()
    one.until_over()
    first, second = one.attempts()
    assert first["why"] == "stopped (interrupt) and saved at step 5"
    assert second["exit_code"] == Exit.DONE


def test_resume_waits_for_what_agents_without_a_driver_save(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "early", behaviours=WAIT | finishing(2))
    one.train()
    one.up(1, 4)
    one.kill_driver()
    one.resume()
    one.until_over()
    assert [line["exit_code"] for line in one.attempts()] == [Exit.SAVED, Exit.DONE]


def test_it_is_stopped_from_any_machine_that_sees_its_folder(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "stopped", behaviours=WAIT)
    one.train()
    one.up(1, 4)
    told = one.type("stop", str(one.run.root), machine=lab.node("node2"))
    assert told.returncode == 0, told.stdout
    assert "stopped (user) and saved at step 5" in told.stdout
    nothing_left(lab, one)
    assert [line["action"] for line in one.attempts()] == ["give_up"]


def test_a_machine_that_will_go_away_is_left_once_all_have_saved(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "drained", behaviours=WAIT | finishing(2))
    one.train("resources.min_nodes=1")
    one.up(1, 4)
    os.kill(agent_of(one, 1), signal.SIGTERM)  # as a cloud's notice does
    one.until_over()
    assert [line["cause"] for line in one.attempts()] == ["preempt", None]
    assert one.spec(2)["nodes"] == 1
    codes = read_json(one.run.attempt(1).ended)["codes"]
    assert set(codes.values()) == {Exit.SAVED}


def test_a_spare_machine_takes_the_place_of_a_lost_one(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "spare", behaviours=WAIT | finishing(2))
    one.train("launch.hosts=[node1,node2,node3]")
    one.up(1, 4)
    lab.node("node2").kill()
    one.until_over()
    assert one.spec(2)["nodes"] == 2
    assert read_json(one.run.attempt(2).ended)["codes"] == dict.fromkeys("0123", 0)
    wait_for(lambda: one.attempts()[-1]["exit_code"] == Exit.DONE)


def test_words_pass_the_remote_shell_as_they_are(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $(touch here) `x` "q" ; & | # ~ -rf'
    folder.mkdir()
    hostile = "a\nb $(touch here) 'c' \"d\""
    behaviours = FINISH | {"0": ["say", hostile]}
    one = SshRun(lab, folder, "words", behaviours=behaviours)
    one.train()
    one.until_over()
    assert one.attempts()[0]["exit_code"] == Exit.DONE
    assert hostile in one.run.attempt(1).rank_log(0).read_text()
    assert not list(tmp_path.rglob("here"))
