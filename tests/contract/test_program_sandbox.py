"""Programs that a model wrote, hostile ones too: what they cannot do, and that nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from trainer.errors import Refused
from trainer.evals.metrics import sandbox as sandbox_module
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.pass_at_k import PassAtK, pass_at_k
from trainer.evals.metrics.sandbox import Limits, Outcome, check_sandbox, run_program

ROOT = Path(__file__).parents[2]
SMALL = Limits(seconds=40.0, memory_mb=256, file_mb=4, folder_mb=8, processes=8)
# Leaves its parent and its session behind, as a daemon does, and would sleep for a while.
NAME = f"escaped{os.getpid()}"
ESCAPES = (
    "import os, time\n"
    f"open('/proc/self/comm', 'w').write('{NAME}')\n"
    "for _ in range(3):\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        if os.fork():\n"
    "            os._exit(0)\n"
    "        time.sleep(7777)\n"
)


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> None:
    """Whether the kernel permits namespaces is asked of another program than the one under test:
    a sandbox that breaks must not leave its own tests out."""
    asked = ["unshare", "-m", "-p", "-f", "-n", "true"]
    if os.geteuid() != 0:
        asked[1:1] = ["-U", "-r"]
    tried = subprocess.run(asked, check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this kernel permits no namespaces: {tried.stderr.strip()}")
    check_sandbox(limits=SMALL)


def ran(program: str, limits: Limits = SMALL) -> Outcome:
    return run_program(program, limits=limits)


def test_a_program_passes_by_coming_to_its_end() -> None:
    assert ran("def f(x):\n    return x + 1\nassert f(1) == 2\nprint('fine')") == Outcome(True, "")
    assert ran("assert 1 == 2, 'wrong\\nsum'") == Outcome(False, "failed: AssertionError wrong sum")
    assert ran("x = (").said.startswith("failed: SyntaxError")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit(0)", "failed: SystemExit 0"),
        ("import os; os._exit(0)", "failed: it ended early"),
        ("import os; os.kill(os.getpid(), 9)", "killed: SIGKILL"),
        # Whoever watches is spoken to over pipes: neither may be spoken for.
        (
            "import os\n"
            "for fd in range(64):\n"
            "    for said in (b'passed:\\n', b'ended\\n', b'refused: me\\n'):\n"
            "        try: os.write(fd, said)\n"
            "        except OSError: pass\n"
            "os._exit(0)",
            "failed: it ended early",
        ),
        ("x = bytearray(1 << 30)", "failed: MemoryError"),
        ("def f(): f()\nf()", "failed: RecursionError"),
        ("open('big', 'wb').write(bytes(5 << 20))", "failed: OSError [Errno 27]"),
        (
            "for n in range(9):\n    open(str(n), 'wb').write(bytes(1 << 20))\nprint(open('0'))",
            "failed: OSError [Errno 28]",
        ),
        ("import os\nwhile True: os.fork()", "failed: BlockingIOError"),
        (
            "from threading import Thread\nfrom time import sleep\n"
            "for n in range(99): Thread(target=sleep, args=[9], daemon=True).start()",
            "failed: RuntimeError",
        ),
        ("import numpy", "failed: ModuleNotFoundError"),
        ("import os\nassert not [p for p in os.environ if p not in ('HOME', 'LC_CTYPE')]", ""),
        ("assert input", ""),
        ("input()", "failed: EOFError"),
        ("print('x' * (64 << 20)); import os; os.write(2, bytes(64 << 20))", ""),
        ("'\\ud800'; s = '\u00fc\U0001f600'; assert len(s) == 2", ""),
    ],
)
def test_hostile_programs_end_alone(program: str, said: str) -> None:
    outcome = ran(program)
    assert outcome.passed == (not said)
    assert outcome.said.startswith(said)


def test_time_is_up_for_loops_and_sleepers_alike() -> None:
    for program in ("while True: pass", "import time; time.sleep(99)"):
        started = time.monotonic()
        assert ran(program, Limits(seconds=0.5)).said == "timeout: it takes more than 0.5 s"
        assert time.monotonic() - started < 15.0


def test_no_network_not_even_this_machines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert ran(reach).said.startswith("failed: OSError [Errno 101]")
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_is_written_or_read_where_others_may() -> None:
    """Once where temporary files lie, and once in a place that is only made read-only."""
    for place in ("/tmp", "/opt"):
        if not os.access(place, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=place) as folder:
            Path(folder).chmod(0o777)
            (Path(folder) / "old").write_text("secret")
            (Path(folder) / "old").chmod(0o666)
            for name in ("new", "old"):
                assert not ran(f"open({f'{folder}/{name}'!r}, 'w').write('mine')").passed
            if place == "/tmp":
                assert not ran(f"open({f'{folder}/old'!r})").passed
            assert [(p.name, p.read_text()) for p in Path(folder).iterdir()] == [("old", "secret")]


def test_what_it_writes_is_gone_for_the_next() -> None:
    assert ran("open('mine', 'w').write('x'); assert open('mine').read() == 'x'").passed
    assert not ran("open('mine')").passed


def test_rights_are_given_up_and_daemons_die() -> None:
    assert ran(
        "import os\n"
        "status = open('/proc/self/status').read()\n"
        "assert int(status.split('CapEff:')[1].split()[0], 16) == 0\n"
        "assert int(status.split('NoNewPrivs:')[1].split()[0]) == 1\n"
        "assert os.getuid() != 0\n"
    ) == Outcome(True, "")
    assert ran(ESCAPES).passed
    assert not asleep()


def test_an_ordinary_user_has_the_same_sandbox() -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if os.geteuid() != 0:
        pytest.skip("the tests above ran as an ordinary user")
    if python is None:
        pytest.skip("there is no Python that another user may start")
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from trainer.evals.metrics.sandbox import *\n"
        "for p in ('assert True', 'import os\\nwhile True: os.fork()',\n"
        "          'import socket; socket.create_connection((\"127.0.0.1\", 9), 1)',\n"
        '          \'open("/var/tmp/x", "w")\'):\n'
        "    print(run_program(p).said[:30])\n"
    )
    done = subprocess.run(
        [python, "-c", program], user=65534, group=65534, extra_groups=[], cwd="/",
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "",
        "failed: BlockingIOError [Errno",
        "failed: OSError [Errno 101] Ne",
        "failed: OSError [Errno 30] Rea",
    ], done.stderr


def without_namespaces(*lines: str, user: int) -> list[str]:
    """What a program prints where no network namespace can be made: root of a container of one
    user, who is `user` outside."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None or os.geteuid() != 0:
        pytest.skip("it takes root, and a Python that all users may start")
    start = (f"import sys; sys.path.insert(0, {str(ROOT)!r})",)
    imports = (
        "from trainer.evals.metrics.sandbox import *",
        "from trainer.errors import Refused",
    )
    program = "\n".join((*start, *imports, *lines))
    forbid = 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "-U", "-r", "sh", "-c", forbid, "sh", python, "-c", program],
        user=user, group=user, extra_groups=[], cwd="/",
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_namespaces_programs_are_refused_unless_that_is_allowed() -> None:
    refusal, passed, late = without_namespaces(
        "try: run_program('')",
        "except Refused as e: print(e)",
        f"print(run_program({ESCAPES!r}, allow_network=True).passed)",
        "short = Limits(seconds=0.3)",
        "print(run_program('while True: pass', limits=short, allow_network=True).said)",
        user=65534,
    )
    assert refusal.startswith("programs that a model wrote are run apart from network and files")
    assert "run_program(allow_network=True)" in refusal
    assert (passed, late) == ("True", "timeout: it takes more than 0.3 s")
    assert not asleep()


def test_root_who_cannot_become_another_runs_nothing_without_namespaces() -> None:
    """The kernel limits no processes of root: a program that forks for ever would take all."""
    (refusal,) = without_namespaces(
        "try: run_program('', allow_network=True)",
        "except Refused as e: print(e)",
        user=0,
    )
    assert "no limit of processes holds for root" in refusal


def test_a_sandbox_too_small_for_an_empty_program_is_refused() -> None:
    with pytest.raises(Refused, match="even an empty one does not pass"):
        check_sandbox(limits=Limits(memory_mb=8))


def test_a_machine_that_is_too_busy_judges_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_START_S", -SMALL.seconds + 0.001)
    with pytest.raises(
        Refused, match=r"did not answer for 0\.001 s: this machine has too much else"
    ):
        ran("assert True")


def asleep() -> list[str]:
    """Escaped processes that outlived their program for minutes."""
    ends = time.monotonic() + 300
    while True:
        found = [p.name for p in Path("/proc").glob("[0-9]*") if _comm(p) == NAME]
        if not found or time.monotonic() > ends:
            return found
        time.sleep(0.05)


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def test_pass_at_k_by_counting_draws() -> None:
    """5 programs, 2 pass: of the 10 pairs 3 have none of them."""
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert pass_at_k(5, 2, 4) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0
    whole = Running(PassAtK((1, 2)))
    whole.add([True, False, False, True, False], None)
    whole.add([False] * 5, None)
    assert whole.value() == {"pass@1": pytest.approx(0.2), "pass@2": pytest.approx(0.35)}
    with pytest.raises(Refused, match="pass@10 needs 10 programs for each problem, but one has 5"):
        Running(PassAtK((1, 10))).add([True] * 5, None)
