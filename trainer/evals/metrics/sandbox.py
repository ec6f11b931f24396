"""Runs a program that a model wrote: in a process of its own, apart from network and files.

    this process -> sandbox_child.py (boots) -> init of its own pid namespace -> the program

What holds it, on Linux:
- no network: a network namespace with nothing in it, and no socket of /run in sight;
- files: everything is mounted read-only; homes and temporary folders are hidden behind empty ones;
  what it writes lies in a memory disk of limited size that goes with it;
- time, memory, processes, size and number of files are limited; as root it is made another user;
- nothing it started outlives it: the end of the namespace's first process ends all.

What does not: it may read files that all users may read, and find out about the machine; a kernel
bug lets it out; a program that searches the interpreter it runs in can claim that it passed.
Several gigabytes can be asked for in all: processes times memory, so run few sandboxes at once.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import Refused

_CHILD = Path(__file__).with_name("sandbox_child.py")
_START_S = 60.0  # two interpreters on a busy machine; the program has a clock of its own
_SAID_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one program. `processes` counts threads too."""

    seconds: float = 10.0  # on the wall, from the program's start
    memory_mb: int = 512  # of address space, each process
    file_mb: int = 16
    folder_mb: int = 64  # in all; of memory
    processes: int = 16


@dataclass(frozen=True)
class Outcome:
    passed: bool  # it ran to its end: every assertion held
    said: str  # why not, in a few words


def run_program(
    program: str, *, limits: Limits | None = None, allow_network: bool = False
) -> Outcome:
    """Runs a Python program with its tests: it passes if it comes to its end without an error.

    It has the standard library alone, no arguments, no input, and its output is thrown away.
    `allow_network`: where the kernel permits no namespaces, run it with the limits only; it then
    has the network, and may write wherever its user may.

    Raises: Refused where it cannot be isolated and that was not allowed, and where the sandbox does
        not even start in time: neither says anything of the program.
    """
    limits = limits or Limits()
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="longhaul-program-") as folder:
        settings = {"nonce": nonce, "folder": folder, "allow_network": allow_network}
        request = json.dumps(asdict(limits) | settings | {"program": program})
        ended, verdict = _ask(request, limits.seconds)
    kind, _, why = ended.partition(": ")
    if kind == "refused":
        raise Refused(
            "programs that a model wrote are run apart from network and files only, and this "
            f"machine does not permit it ({why}): evaluate where user namespaces are allowed, or "
            "in Python call run_program(allow_network=True), which runs them with limits of time, "
            "memory and processes alone"
        )
    if kind != "ended":
        return Outcome(False, ended)
    if verdict == f"passed:{nonce}":
        return Outcome(True, "")
    return Outcome(False, verdict if verdict.startswith("failed: ") else "failed: it ended early")


def check_sandbox(*, limits: Limits | None = None, allow_network: bool = False) -> None:
    """To be called once before programs are judged: does one that does nothing pass here?

    Raises: Refused.
    """
    outcome = run_program("", limits=limits, allow_network=allow_network)
    if not outcome.passed:
        raise Refused(
            "no program can be run in the sandbox of this machine: even an empty one does not pass "
            f"({outcome.said}); give it more memory or time"
        )


def _ask(request: str, seconds: float) -> tuple[str, str]:
    """How the program ended, by the child, and what it says of itself: a line each."""
    pipes = [os.pipe(), os.pipe()]
    (how, tell_how), (verdict, tell_verdict) = pipes
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_CHILD), str(tell_how), str(tell_verdict)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=(tell_how, tell_verdict),
            start_new_session=True,
        )
        try:
            child.communicate(request.encode("utf-8", "surrogatepass"), timeout=seconds + _START_S)
        except subprocess.TimeoutExpired as e:
            child.kill()  # the namespace's first process dies with it, and all others with that one
            child.wait()
            raise Refused(
                f"the sandbox of a program did not answer for {seconds + _START_S:g} s: this "
                "machine has too much else to do for a fair judgement; try again with less on it"
            ) from e
        return _line(how), _line(verdict)
    finally:
        for end in (*pipes[0], *pipes[1]):
            os.close(end)


def _line(reader: int) -> str:
    """What lies in the pipe: not to its end, which something might hold open."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, _SAID_BYTES).decode(errors="replace").partition("\n")[0]
    except BlockingIOError:
        return ""
