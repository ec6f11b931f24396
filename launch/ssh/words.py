"""The words of an ssh command. Pure.

ssh joins the words of a remote command with blanks and gives them to the login shell of the host:
so there is one word, made by shlex.join.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from trainer.config.sections.ssh import SshLaunch

_ALIVE_COUNT = 3
PERSIST_S = 15  # an idle connection that all commands share is closed after this
_LONGEST_SOCKET = 104 - 1 - 17 - 40  # of a path, less what ssh adds while it makes it, less %C


def ssh_words(launch: SshLaunch, host: str, command: str, *, sockets: Path | None) -> list[str]:
    """`command`: as a shell there reads it. `sockets`: a folder for shared connections."""
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"ConnectTimeout={launch.connect_timeout_s}",
        f"ServerAliveInterval={max(1, launch.silent_s // _ALIVE_COUNT)}",
        f"ServerAliveCountMax={_ALIVE_COUNT}",
        "LogLevel=ERROR",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
    ]
    if sockets is not None and len(str(sockets)) < _LONGEST_SOCKET:
        options += ["ControlMaster=auto", f"ControlPersist={PERSIST_S}"]
        options += [f"ControlPath={sockets}/%C"]
    words = ["ssh", "-T"]
    for option in [*options, *launch.options]:
        words += ["-o", option]
    for flag, value in (("-l", launch.user), ("-p", launch.port), ("-i", launch.identity_file)):
        words += [flag, str(value)] if value is not None else []
    return [*words, "--", host, command]


def remote_command(argv: Sequence[str], *, workdir: str) -> str:
    """`argv` in a folder, as one line for a POSIX shell."""
    return f"cd {shlex.quote(workdir)} && exec {shlex.join(argv)}"


def selected(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The variables that travel."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in names)
    }
