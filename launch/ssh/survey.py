"""Asks all hosts at once what they are, and says in one table what is wrong with which."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.ssh.words import ssh_words
from trainer.config.sections.ssh import SshLaunch

SCRIPT = Path(__file__).with_name("seen.py")
_MARK = "longhaul "
_AT_ONCE = 64


@dataclass(frozen=True)
class Answer:
    """`said`: by launch/ssh/seen.py, empty where there is no answer; `problem`, `fix`: why then.

    Units: `skew_s` of the host's clock against this one's, at most `delay_s` wrong.
    """

    host: str
    said: Mapping[str, Any]
    problem: str = ""
    fix: str = ""
    skew_s: float = 0.0
    delay_s: float = 0.0


@dataclass(frozen=True)
class Asked:
    """`folders`: folder -> a file in it that must be seen there."""

    folders: Mapping[str, str]
    wait_s: float = 0.0
    port: int = 0
    packages: Sequence[str] = ()
    brief: bool = False


def ask(
    launch: SshLaunch, hosts: Sequence[str], asked: Asked, *, sockets: Path | None
) -> list[Answer]:
    """Every host's answer, in their order; all are asked at once."""
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(1, len(hosts)))) as pool:
        return list(pool.map(lambda host: _ask_one(launch, host, asked, sockets), hosts))


def _ask_one(launch: SshLaunch, host: str, asked: Asked, sockets: Path | None) -> Answer:
    question = {
        "folders": dict(asked.folders),
        "wait_s": asked.wait_s,
        "port": asked.port,
        "packages": list(asked.packages),
        "brief": asked.brief,
        "interface": launch.interface,
    }
    command = f"exec {shlex.join([python_of(launch), '-E', '-', json.dumps(question)])}"
    words = ssh_words(launch, host, command, sockets=sockets)
    patience_s = launch.connect_timeout_s + launch.silent_s + asked.wait_s + 30.0
    begun, clock = time.monotonic(), time.time()
    try:
        done = subprocess.run(
            words,
            input=SCRIPT.read_bytes(),
            capture_output=True,
            start_new_session=True,
            timeout=patience_s if not asked.brief else launch.connect_timeout_s + 5.0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(host, {}, "it did not answer in time", f"ssh {host} true")
    delay_s = time.monotonic() - begun
    said = _said(done.stdout)
    if said is None:
        problem, fix = _why(launch, host, done.returncode, done.stderr.decode(errors="replace"))
        return Answer(host, {}, problem, fix)
    skew_s = float(said["time"]) - (clock + delay_s / 2)
    return Answer(host, said, skew_s=skew_s, delay_s=delay_s)


def python_of(launch: SshLaunch) -> str:
    return launch.python or sys.executable


def workdir_of(launch: SshLaunch) -> str:
    return launch.workdir or str(Path.cwd())


def _said(output: bytes) -> dict[str, Any] | None:
    """Whatever a login shell prints besides is left out."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        if line.startswith(_MARK):
            try:
                found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            except ValueError:
                return None
            return found
    return None


def _why(launch: SshLaunch, host: str, code: int, errors: str) -> tuple[str, str]:
    """(what is wrong, what to type) from the words of OpenSSH's client."""
    name = host.rpartition("@")[2]
    at_port = f"-p {launch.port} " if launch.port else ""
    if "HOST IDENTIFICATION HAS CHANGED" in errors:
        what = "its host key is not the one that is known: another machine answers there"
        return what, f"if that is right: ssh-keygen -R {name}, then add its new key"
    if "Host key verification failed" in errors or "host key is known" in errors:
        what = "its host key is not known, so nobody can say which machine answers"
        return what, f"ssh-keyscan {at_port}{name} >> ~/.ssh/known_hosts, and compare fingerprints"
    if "Permission denied" in errors:
        return (
            "it lets nobody in with this user and key",
            "launch.user=... launch.identity_file=...",
        )
    if "Could not resolve hostname" in errors:
        return "no machine of that name is known", "its address, or a Host entry in ~/.ssh/config"
    for words in ("Connection refused", "timed out", "No route to host", "unreachable"):
        if words in errors:
            return f"it cannot be reached ({words.lower()})", f"ssh {at_port}{name} true"
    if code in (126, 127):
        return f"there is no {python_of(launch)}", "launch.python=/path/to/python"
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return f"ssh ended with {code}: {last}", f"ssh {at_port}{name} {python_of(launch)} --version"
