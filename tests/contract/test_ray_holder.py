"""What Ray keeps on a node for us, without Ray: an agent is started, heard and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.raying.actor import AgentHolder
from trainer.errors import Exit

_AGENT = """
import os, sys
print(os.getpid(), os.environ.get("MINE"), os.environ.get("RAY_AUTH_TOKEN"), flush=True)
for line in sys.stdin:
    print("heard", line.strip(), flush=True)
    if line.strip() == "leave":
        sys.exit(75)
open(sys.argv[1], "w").write("saved")
"""


def heard(holder: AgentHolder, until: bytes) -> tuple[bytes, int | None]:
    said, code = b"", None
    deadline = time.monotonic() + 300.0
    while until not in said and code is None:
        assert time.monotonic() < deadline, said
        data, code = holder.hear(len(said), 0.2)
        said += data
    return said, code


def begin(holder: AgentHolder, folder: Path) -> None:
    argv = ["python", "-S", "-c", _AGENT, str(folder / "end")]
    holder.start(argv, {"MINE": "yes"}, str(folder), sys.executable)


def test_orders_that_come_early_are_kept_and_words_are_heard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    holder = AgentHolder()
    holder.tell(b"first\n")
    assert holder.hear(0, 0.1) == (b"", None)
    begin(holder, tmp_path)
    said, _ = heard(holder, b"heard first\n")
    assert b"yes None" in said
    assert holder.hear(0, 0.1)[0] == said  # asked again: the answer may have been lost
    holder.tell(b"leave\n")
    more = b""
    code = None
    while code is None:
        data, code = holder.hear(len(said) + len(more), 0.2)
        more += data
        code = None if data else code
    holder.end()
    assert (more, code) == (b"heard leave\n", 75)


def test_an_agent_is_ended_with_its_holders_word(tmp_path: Path) -> None:
    holder = AgentHolder()
    begin(holder, tmp_path)
    said, _ = heard(holder, b"\n")
    pid = int(said.split()[0])
    holder.end()
    assert not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "end").exists()


def test_an_agent_outlives_its_holder_for_as_long_as_it_needs(tmp_path: Path) -> None:
    """Ray kills its own process, and the children of that, when a driver goes."""
    program = (
        "import sys; from pathlib import Path; from launch.raying.actor import AgentHolder\n"
        "from tests.contract.test_ray_holder import begin, heard\n"
        "holder = AgentHolder(); begin(holder, Path(sys.argv[1]))\n"
        "heard(holder, b'\\n'); print(holder._pipes.process.pid, flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    deadline = time.monotonic() + 300.0
    while not (tmp_path / "end").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_folder_that_is_not_there_is_said_by_the_agents_last_words(tmp_path: Path) -> None:
    holder = AgentHolder()
    holder.start(["python"], {}, str(tmp_path / "nowhere"), None)
    said, code = holder.hear(0, 0.1)
    assert said == f"launch.workdir={tmp_path}/nowhere: No such file or directory\n".encode()
    assert code == Exit.REFUSED
    assert holder.hear(len(said), 0.1) == (b"", code)
