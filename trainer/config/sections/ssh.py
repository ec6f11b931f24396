"""Machines that ssh reaches: nothing is installed there but this package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section


class SshLaunch(Section):
    """Whatever is null is left to ssh's own configuration, or is as on this machine."""

    kind: Literal["ssh"]
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL
    hosts: tuple[str, ...]
    hosts_file: str | None  # one host a line
    user: str | None
    port: Annotated[int, Field(ge=1, lt=65536)] | None
    identity_file: str | None
    options: tuple[str, ...]  # ssh -o
    python: str | None  # the interpreter there that has this package
    workdir: str | None  # where relative paths of the settings begin there
    environment: tuple[str, ...]  # names that travel; NCCL_* stands for all of them
    interface: str | None  # by which the nodes reach each other
    connect_timeout_s: Annotated[int, Field(ge=1)]
    silent_s: Annotated[int, Field(ge=3)]  # a connection without a sign of life for so long is lost
    foreground: bool
