"""Where ranks are started. One class a backend; launch/backends/table.py names who does it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section
from trainer.config.sections.cloud import KubeRayLaunch, RayUpLaunch, SkyLaunch
from trainer.config.sections.ray import RayLaunch
from trainer.config.sections.slurm import SlurmLaunch
from trainer.config.sections.ssh import SshLaunch


class LocalLaunch(Section):
    kind: Literal["local"]
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL


Launch = Annotated[
    LocalLaunch | SlurmLaunch | SshLaunch | RayLaunch | SkyLaunch | KubeRayLaunch | RayUpLaunch,
    Field(discriminator="kind"),
]
