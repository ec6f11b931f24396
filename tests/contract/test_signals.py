"""Signals to a process: seen at once whatever its main thread does, and written down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from trainer.errors import Exit
from trainer.records.attempt import read_stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_seen_while_the_main_thread_runs_no_python(number: signal.Signals) -> None:
    code = """
import ctypes, threading, time
from trainer.dist.signals import StopSignals
stop = StopSignals()
seen = []
libc, mutex, held = ctypes.CDLL(None), ctypes.create_string_buffer(64), threading.Event()
def watch():
    libc.pthread_mutex_lock(mutex)
    held.set()
    while not stop.is_set():
        time.sleep(0.01)
    seen.append(True)
    libc.pthread_mutex_unlock(mutex)
threading.Thread(target=watch, daemon=True).start()
held.wait()
print("up", flush=True)
# One call into C that gives up Python's lock and that no signal cuts short, as the wait in a
# collective: it lasts until the signal was seen.
libc.pthread_mutex_lock(mutex)
print(seen, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    stat = Path(f"/proc/{process.pid}/stat")  # asleep: in that call
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
    process.send_signal(number)
    out, _ = process.communicate(timeout=300)
    assert out == "[True]\n"
    assert process.returncode == 0


def test_who_asked_to_stop_is_recorded_unless_it_is_known(tmp_path: Path) -> None:
    code = f"""
import os, signal, time
from pathlib import Path
from trainer.dist.signals import StopSignals
stop = StopSignals()
os.kill(os.getpid(), signal.SIGUSR1)
while not stop.is_set():
    time.sleep(0.01)
stop.record(Path({str(tmp_path / "stop.json")!r}))
stop.record(Path({str(tmp_path / "stop.json")!r}))
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(200)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=300, check=False)
    assert done.returncode == Exit.INTERRUPTED  # the second Ctrl-C ends at once
    stop = read_stop(tmp_path / "stop.json")
    assert stop is not None
    assert (stop.cause, stop.detail) == ("scheduler", "SIGUSR1 to a rank")


def test_a_pause_is_recorded_as_a_stop_that_stays(tmp_path: Path) -> None:
    """Whoever restarts leaves it alone, although a signal came just then."""
    code = f"""
import os, signal, time
from pathlib import Path
from trainer.dist.signals import StopSignals
stop = StopSignals()
os.kill(os.getpid(), signal.SIGTERM)
while not stop.is_set():
    time.sleep(0.01)
stop.record(Path({str(tmp_path / "stop.json")!r}), paused=True)
"""
    subprocess.run([sys.executable, "-c", code], timeout=300, check=True)
    stop = read_stop(tmp_path / "stop.json")
    assert stop is not None
    assert (stop.cause, stop.detail) == ("user", "steps.pause_at")
