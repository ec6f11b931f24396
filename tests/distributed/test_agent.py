"""The agent with real processes (ranks without torch): every ending, and that nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.run.ended import read_ended
from tests.helpers.agent_process import REPOSITORY, Attempt, still_alive, wait_for
from trainer.records.attempt import Stop, read_error, read_stop, write_record
from trainer.records.json_file import read_lines


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., Attempt]]:
    made: list[Attempt] = []

    def make(*behaviours: list[str], port: int = 0, grace_s: float = 10.0) -> Attempt:
        made.append(Attempt(tmp_path, *behaviours, port=port, grace_s=grace_s))
        return made[-1]

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.process.kill()
            each.process.communicate()
        wait_for(lambda run=each.run: not still_alive(run))


def test_ranks_that_finish_end_the_attempt_as_done(attempt):
    one = attempt(["say", "hello from rank 0"], ["say", "hello from rank 1"]).start()
    code, out, _ = one.end()
    assert code == 0
    assert out == "hello from rank 0\n"
    logs = [one.files.rank_log(rank) for rank in one.ranks]
    assert [log.read_text() for log in logs] == ["hello from rank 0\n", "hello from rank 1\n"]
    assert [log.stat().st_mode & 0o777 for log in logs] == [0o600, 0o600]
    (line,) = read_lines(one.run.attempts_log)
    assert line["exit_code"] == 0
    assert line["why"] == "finished at step 7"
    assert not still_alive(one.run)


def test_a_rank_that_raises_ends_the_others_and_its_own_error_is_shown(attempt):
    one = attempt(["hang"], ["raise", "row 17 is empty"]).start()
    code, _, err = one.end()
    assert code == 76
    assert "rank 1 failed: DataError: row 17 is empty" in err
    assert str(one.files.rank_log(1)) in err
    assert not still_alive(one.run)


def test_an_error_that_another_start_cannot_mend_says_so(attempt):
    one = attempt(["refuse", "shard 3 has a flipped byte"]).start()
    code, _, err = one.end()
    assert code == 78
    assert "shard 3 has a flipped byte" in err


def test_a_killed_rank_is_noticed_at_once_and_named(attempt):
    one = attempt(["wait"], ["wait"]).start().until_up()
    os.kill(one.pid(1), signal.SIGKILL)
    killed = time.time()
    wait_for(one.files.error.exists)
    error = read_error(one.files.error)
    assert error is not None
    assert error.time - killed < 60  # 0.1 s on an idle machine: of the minutes that a rank waits
    code, _, err = one.end()
    assert code == 76
    assert "rank 1 was killed by signal 9 (SIGKILL)" in err
    ended = read_ended(one.files.ended)
    assert ended is not None
    assert ended.first_failed_rank == 1
    assert ended.codes["1"] == -9
    assert not still_alive(one.run)


def test_a_rank_that_dies_without_a_word_is_shown_by_the_end_of_its_log(attempt):
    one = attempt(["exit", "3"]).start()
    code, _, err = one.end()
    assert code == 76
    assert "rank 0 exited with code 3 and left no error.json" in err
    assert "about to leave" in err


def test_ctrl_c_once_saves_on_every_rank(attempt):
    one = attempt(["wait"], ["wait"]).start().until_up()
    one.signal(signal.SIGINT)
    code, _, err = one.end()
    assert code == 75
    assert "Ctrl-C again ends at once" in err
    stop = read_stop(one.files.stop)
    assert stop is not None
    assert stop.cause == "interrupt"
    assert [(one.files.root / f"told-{r}").read_text() for r in one.ranks] == ["15", "15"]
    (line,) = read_lines(one.run.attempts_log)
    assert line["why"] == "stopped (interrupt) and saved at step 5"


def test_ctrl_c_twice_ends_at_once(attempt):
    one = attempt(["hang"], ["children"], grace_s=900).start().until_up()
    one.signal(signal.SIGINT)
    wait_for(one.files.stop.exists)
    one.signal(signal.SIGINT)
    code, _, _ = one.end()
    assert code == 130
    assert not still_alive(one.run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_signal_reaches_every_rank(attempt, number):
    one = attempt(["wait"], ["wait"]).start().until_up()
    one.signal(number)
    code, _, _ = one.end()
    assert code == 75
    stop = read_stop(one.files.stop)
    assert stop is not None
    assert (stop.cause, stop.detail) == ("scheduler", number.name)
    assert [(one.files.root / f"told-{r}").read_text() for r in one.ranks] == [str(int(number))] * 2


def test_a_stop_that_a_user_has_written_keeps_its_cause(attempt):
    one = attempt(["wait"]).start().until_up()
    write_record(one.files.stop, Stop(cause="user", time=time.time()))
    one.signal(signal.SIGTERM)
    assert one.end()[0] == 75
    (line,) = read_lines(one.run.attempts_log)
    assert (line["action"], line["why"]) == ("give_up", "stopped (user) and saved at step 5")


def test_a_rank_that_does_not_stop_in_time_is_killed_and_nothing_is_claimed_saved(attempt):
    one = attempt(["hang"], ["hang"], grace_s=0.5).start().until_up()
    one.signal(signal.SIGTERM)
    code, _, err = one.end()
    assert code == 76
    assert "did not end in time to save; there is no checkpoint" in err
    assert not still_alive(one.run)


@pytest.mark.parametrize("ending", ["stop", "agent killed", "rank killed"])
def test_no_grandchild_outlives_an_attempt(attempt, ending):
    one = attempt(["children"], ["wait"]).start().until_up()
    children = [int(pid) for pid in (one.files.root / "children").read_text().split()]
    if ending == "stop":
        one.signal(signal.SIGTERM)
    elif ending == "rank killed":
        os.kill(one.pid(0), signal.SIGKILL)
    else:
        one.signal(signal.SIGKILL)
    one.end()
    wait_for(lambda: not any(_runs(pid) for pid in children))
    wait_for(lambda: not still_alive(one.run))


def test_ranks_die_with_their_agent_even_without_its_shadow(attempt):
    """Two nets: the shadow covers grandchildren, the kernel's own signal covers the ranks."""
    one = attempt(["hang"], ["hang"]).start().until_up()
    agent = one.process.pid
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    (shadow,) = {int(pid) for pid in children} - {one.pid(rank) for rank in one.ranks}
    os.kill(shadow, signal.SIGKILL)
    one.signal(signal.SIGKILL)
    one.end()
    wait_for(lambda: not still_alive(one.run))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_taken_port_is_refused_before_anything_starts(attempt):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        one = attempt(["finish"], port=port).start()
        code, _, err = one.end()
    assert code == 2
    assert f"resources.rendezvous_port: port {port} on 127.0.0.1 is taken" in err
    assert "try: resources.rendezvous_port=0" in err
    assert not (one.files.root / "up-0").exists()


def test_an_attempt_without_a_plan_is_refused(tmp_path):
    argv = [sys.executable, "-m", "launch.agent", str(tmp_path), "--attempt", "4"]
    ended = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 78
    assert "is no attempt of a run" in ended.stderr
