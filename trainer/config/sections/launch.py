"""Where ranks are started. One class a backend; launch/backends/table.py names who does it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section


class _Launch(Section):
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL


class LocalLaunch(_Launch):
    kind: Literal["local"]


Launch = LocalLaunch
