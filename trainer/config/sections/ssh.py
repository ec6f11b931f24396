"""Machines that ssh reaches: nothing is installed there but this package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trainer.config.sections.base import Section

_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
HOST_PATTERN = rf"^({_WORD}@)?{_WORD}$"  # never an option, never two words
OPTION_PATTERN = r"^[A-Za-z][A-Za-z0-9]*=[^\n\r\x00]+$"
# Ours: agents' lives and the user's safety depend on them. Each with the reason that is told.
OURS = {
    "batchmode": "nobody is there to answer a question",
    "stricthostkeychecking": "a host whose key is not known is refused; add its key to known_hosts",
    "requesttty": "agents speak through plain pipes",
    "remotecommand": "the command is the agent's",
    "stdinnull": "orders come on stdin",
    "forkafterauthentication": "the connection is watched",
    "connecttimeout": "launch.connect_timeout_s says it",
    "serveraliveinterval": "launch.silent_s says it",
    "serveralivecountmax": "launch.silent_s says it",
    "user": "launch.user says it",
    "port": "launch.port says it",
    "identityfile": "launch.identity_file says it",
}

Host = Annotated[str, Field(pattern=HOST_PATTERN)]


def _checked_option(text: str) -> str:
    name = text.partition("=")[0].lower()
    if name in OURS:
        raise ValueError(f"{text.partition('=')[0]} cannot be set: {OURS[name]}")
    return text


Option = Annotated[str, Field(pattern=OPTION_PATTERN), AfterValidator(_checked_option)]


class SshLaunch(Section):
    """Whatever is null is left to ssh's own configuration, or is as on this machine."""

    kind: Literal["ssh"]
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL
    hosts: tuple[Host, ...]
    hosts_file: str | None  # one host a line
    user: Annotated[str, Field(pattern=rf"^{_WORD}$")] | None
    port: Annotated[int, Field(ge=1, lt=65536)] | None
    identity_file: str | None
    options: tuple[Option, ...]  # ssh -o
    python: str | None  # the interpreter there that has this package
    workdir: str | None  # where relative paths of the settings begin there
    environment: tuple[str, ...]  # names that travel; NCCL_* stands for all of them
    interface: str | None  # by which the nodes reach each other
    connect_timeout_s: Annotated[int, Field(ge=1)]
    silent_s: Annotated[int, Field(ge=3)]  # a connection without a sign of life for so long is lost
    foreground: bool
