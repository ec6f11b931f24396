"""Ranks that are forked from a process that waits: as good as those an agent starts itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.node.processes import Family
from launch.node.ranks import LISTENER
from launch.node.warm import MODULE, Standby, WarmStart, adopt_orphans
from tests.helpers.agent_process import wait_for
from tests.helpers.configs import config
from trainer.standby import why_not_fork

TAG = f"test.{os.getpid()}"
RANK = """
import json, os, resource, signal, sys, ctypes
death = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(death))
said = {
    "argv": sys.argv, "ppid": os.getppid(), "session": os.getsid(0), "pid": os.getpid(),
    "env": dict(os.environ), "cwd": os.getcwd(), "death": death.value,
    "umask": os.umask(0o77), "name": __name__, "torch": "torch" in sys.modules,
    "priority": os.getpriority(os.PRIO_PROCESS, 0),
    "cmdline": open("/proc/self/cmdline").read().split(chr(0)),
    "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    "environ": open("/proc/self/environ").read(),
    "stdin": os.read(0, 1).decode(),
}
print(json.dumps(said), flush=True)
print("an error", file=sys.stderr)
what = sys.argv[1]
if what == "exit":
    sys.exit(int(sys.argv[2]))
if what == "raise":
    raise RuntimeError("of its own")
import time
time.sleep(600)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmStart]:
    folder = tmp_path_factory.mktemp("standby")
    (folder / "said_by_rank.py").write_text(RANK)
    settings = {"config": config("engine=zero2").model_dump(mode="json"), "device": "cpu"}
    env = dict(os.environ) | {
        "DS_ACCELERATOR": "cpu",
        "LONGHAUL_FAMILY": TAG,
        "PYTHONPATH": f"{Path.cwd()}:{folder}",
    }
    reader, writer = os.pipe()
    made = WarmStart(settings, env, folder / "standby.log", reader)
    made.begin(quiet=True)
    assert made.standby is not None
    hurried = threading.Thread(target=_hurry, args=(made.standby.process.pid,))
    hurried.start()
    ready = made.standby.wait(300)
    hurried.join()
    assert ready, made.log.read_text()
    yield made
    made.end()
    os.close(reader)
    os.close(writer)


def _hurry(pid: int) -> None:
    """Its thread of the lowest priority gets no core where there is much else to do.

    It is one step below the others instead, once it has lowered itself.
    """
    for _ in range(3000):
        for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended, or this is not root
                if os.getpriority(os.PRIO_PROCESS, int(task.name)) < 19:
                    continue
                os.setpriority(os.PRIO_PROCESS, int(task.name), os.nice(0) + 1)
            return
        time.sleep(0.1)


def started(warm: WarmStart, folder: Path, *arguments: str, listener: int | None = None):
    out, err = (os.open(folder / name, os.O_WRONLY | os.O_CREAT) for name in ("out", "err"))
    env = {"PATH": "/bin", "RANK": "1", "PYTHONUNBUFFERED": "1", "LONGHAUL_FAMILY": TAG}
    argv = ["said_by_rank", *arguments]
    child = warm.start(argv, env=env, stdout=out, stderr=err, listener=listener)
    os.close(out)
    os.close(err)
    return child


def said(folder: Path) -> dict:
    wait_for(lambda: (folder / "out").read_text().endswith("\n"))
    return json.loads((folder / "out").read_text())


def test_a_forked_rank_is_as_one_that_was_started(
    warm: WarmStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = started(warm, tmp_path, "exit", "76")
    seen = said(tmp_path)
    assert child.wait() == 76
    assert (tmp_path / "err").read_text() == "an error\n"
    assert seen["torch"], "the imports are not shared"
    assert seen["ppid"] == os.getpid()
    assert seen["pid"] == child.pid == seen["session"]
    assert seen["death"] == signal.SIGKILL
    assert seen["env"].items() >= {"PATH": "/bin", "RANK": "1", "PYTHONUNBUFFERED": "1"}.items()
    assert set(seen["env"]) - {"LC_CTYPE"} == {
        "PATH",
        "RANK",
        "PYTHONUNBUFFERED",
        "LONGHAUL_FAMILY",
    }
    shown = seen["environ"].rstrip(chr(0)).split(chr(0))
    assert shown == ["PATH=/bin", "RANK=1", "PYTHONUNBUFFERED=1", f"LONGHAUL_FAMILY={TAG}"]
    assert seen["cwd"] == str(tmp_path)
    assert seen["umask"] == 0o77
    assert seen["name"] == "__main__"
    assert seen["argv"][1:] == ["exit", "76"]
    assert seen["cmdline"][1:5] == ["-m", "said_by_rank", "exit", "76"]
    assert seen["priority"] == os.getpriority(os.PRIO_PROCESS, 0)  # though it imported quietly
    assert seen["term"]
    assert seen["stdin"] == ""


def test_how_it_ends_is_what_the_agent_sees(warm: WarmStart, tmp_path: Path) -> None:
    assert started(warm, tmp_path, "raise").wait() == 1
    assert "RuntimeError: of its own" in (tmp_path / "err").read_text()
    (tmp_path / "out").unlink()
    child = started(warm, tmp_path, "wait")
    said(tmp_path)
    members = Family(tag=TAG, sessions=frozenset(), spared=warm.pids).members()
    assert members == [child.pid]
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_a_rank_is_given_the_socket_that_listens(warm: WarmStart, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        child = started(warm, tmp_path, "exit", "0", listener=listener.fileno())
    assert int(said(tmp_path)["env"][LISTENER]) > 2
    assert child.wait() == 0


def test_a_standby_with_a_second_thread_is_not_forked(tmp_path: Path) -> None:
    """Then the rank is a new interpreter, and says nothing of it but in the standby's log."""
    (tmp_path / "threads_at_import.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    (tmp_path / "said_by_rank.py").write_text(RANK)
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif {MODULE!r} in sys.orig_argv: import threads_at_import\n"
    )
    env = dict(os.environ) | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    reader, writer = os.pipe()
    made = WarmStart({"config": None, "device": "cpu"}, env, tmp_path / "standby.log", reader)
    made.begin(quiet=False)
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    child = made.start(
        ["said_by_rank", "exit", "3"], env=env, stdout=out, stderr=out, listener=None
    )
    assert child.wait() == 3
    assert "2 threads: a fork of them would hang" in made.log.read_text()
    assert made.standby is None
    for descriptor in (reader, writer, out):
        os.close(descriptor)


def test_a_process_that_has_touched_cuda_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "task" / "1").mkdir(parents=True)
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd" / "0").symlink_to("/dev/null")
    (tmp_path / "fd" / "1").symlink_to("/dev/nvidiactl")  # asking the driver's library is no harm
    assert why_not_fork(tmp_path) == ""
    (tmp_path / "fd" / "2").symlink_to("/dev/nvidia-uvm")
    assert "initialised CUDA" in why_not_fork(tmp_path)


def test_a_signal_is_not_kept_waiting_by_imports(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    adopt_orphans()
    settings = {"config": None, "device": "cpu"}
    one = Standby.begin(settings, env=os.environ, log=tmp_path / "log", quiet=False)
    os.write(writer, b"x")
    began = time.monotonic()
    assert not one.wait(1000, until=reader)
    assert time.monotonic() - began < 100  # of the 1000 that it may wait
    one.end()
    os.close(reader)
    os.close(writer)
