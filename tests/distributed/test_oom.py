"""Memory that runs out is told from every other signal 9, by the kernel's own counters."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.node.oom import LOOKS, OomCounters
from launch.run.budgets import RestartRules
from launch.run.lease import read_beat
from tests.helpers.agent_process import Attempt, wait_for
from trainer.records.attempt import read_error
from trainer.records.json_file import read_lines, write_json
from trainer.records.run_files import AttemptFiles


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of 48 MiB; removed afterwards."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        folder = root / f"longhaul-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(48 << 20))
            break
        except OSError as e:
            why = str(e)
            if folder.is_dir():
                folder.rmdir()
    else:
        pytest.skip(f"no memory cgroup can be made here: {why}")
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text().strip())
    folder.rmdir()


def until_looked_at(files: AttemptFiles) -> None:
    """The agent looks where its ranks are counted after each of its beats."""
    for _ in range(2):
        last = read_beat(files)
        wait_for(lambda last=last: read_beat(files) != last)  # type: ignore[misc]


def test_the_kernels_kill_is_named_and_answered_once(cgroup: Path, tmp_path: Path) -> None:
    one = Attempt(tmp_path, ["wait"], ["eat"], restart=RestartRules(enabled=True))
    memory = {"parameters": 40 << 20, "gradients": 20 << 20}
    write_json(one.files.plan, {"attempt": 1, "world_size": 2, "memory_per_rank": memory})
    one.start()
    for number in (1, 2):
        files = one.run.attempt(number)
        wait_for((files.root / "up-1").exists)
        pid = int((files.root / "up-1").read_text())
        (cgroup / "cgroup.procs").write_text(str(pid))
        until_looked_at(files)
        (files.root / "eat").touch()
        wait_for(files.error.exists)
    code, _, err = one.end()
    assert code == 78, err
    error = read_error(one.run.attempt(2).error)
    assert error is not None
    assert (error.kind, error.rank) == ("OutOfMemory", 1)
    assert "memory ran out (the plan foresaw 60.0 MiB for a rank)" in err
    assert [line["cause"] for line in read_lines(one.run.attempts_log)] == ["oom", "oom"]
    why = list(read_lines(one.run.attempts_log))[-1]["why"]
    assert "memory ran out again after a restart: a smaller batch.micro_batch_size" in why
    assert not one.run.attempt(3).root.exists()


def test_another_signal_9_is_not_taken_for_it(cgroup: Path, tmp_path: Path) -> None:
    one = Attempt(tmp_path, ["wait"], ["wait"]).start().until_up()
    (cgroup / "cgroup.procs").write_text(str(one.pid(1)))
    until_looked_at(one.files)
    os.kill(one.pid(1), signal.SIGKILL)
    code, _, err = one.end()
    assert code == 76
    assert "rank 1 was killed by signal 9 (SIGKILL)\n" in err


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "cg/a/b/memory.events"),
        ("4:memory:/a/b", "cg/memory/a/b/memory.oom_control"),
        ("0::/hidden", "proc/vmstat"),
    ],
)
def test_the_nearest_counter_is_the_one_that_is_read(tmp_path: Path, line: str, file: str) -> None:
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text(f"9:cpu:/x\n{line}\n")
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    counter = tmp_path / file
    counter.parent.mkdir(parents=True, exist_ok=True)
    counter.write_text("oom 9\noom_kill 3\n")
    counters = OomCounters(proc, tmp_path / "cg")
    counters.look([7])
    assert counters.has_killed(7) is False
    counter.write_text("oom 9\noom_kill 4\n")
    assert counters.has_killed(7) is True
    for _ in range(LOOKS - 1):  # it is dying; with many GiB that takes seconds
        counters.look([])
        assert counters.has_killed(7) is True
    counters.look([])
    assert counters.has_killed(7) is False


def test_a_dying_process_is_counted_where_it_lived(tmp_path: Path) -> None:
    """Linux 6.18, cgroup 1: between the kill and the exit /proc/PID/cgroup says the root's."""
    own, root = (tmp_path / "cg/memory" / inner / "memory.oom_control" for inner in ("a", ""))
    own.parent.mkdir(parents=True)
    mark = tmp_path / "proc" / "7" / "cgroup"
    mark.parent.mkdir(parents=True)
    mark.write_text("4:memory:/a\n")
    own.write_text("oom_kill 0\n")
    root.write_text("oom_kill 9\n")
    counters = OomCounters(tmp_path / "proc", tmp_path / "cg")
    counters.look([7])
    own.write_text("oom_kill 1\n")
    mark.write_text("4:memory:/\n")
    counters.look([7])
    assert counters.has_killed(7) is True


def test_where_nothing_is_counted_nothing_is_claimed(tmp_path: Path) -> None:
    counters = OomCounters(tmp_path, tmp_path)
    counters.look([1])
    assert counters.has_killed(1) is None
