"""Nodes of a Ray cluster that stands already: one agent on each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

# Of the cluster's control store. "auto": RAY_ADDRESS, or the cluster that this machine is part of.
ADDRESS_PATTERN = r"^(auto|[A-Za-z0-9_][A-Za-z0-9._-]*:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})$"
DASHBOARD_PATTERN = r"^https?://[A-Za-z0-9_\[][A-Za-z0-9._:\]-]*/?$"
RESOURCE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$"

Amount = Annotated[float, Field(gt=0)]
ResourceName = Annotated[str, Field(pattern=RESOURCE_PATTERN)]


class RayLaunch(Section):
    kind: Literal["ray"]
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL
    address: Annotated[str, Field(pattern=ADDRESS_PATTERN, examples=["auto", "head:6379"])]
    submit: Literal["driver", "job"]  # where the driver runs: on this machine | on the head node
    # for submit=job
    dashboard: Annotated[str, Field(pattern=DASHBOARD_PATTERN)] | None = Field(
        examples=["http://127.0.0.1:8265"]
    )
    auth: Literal["token", "disabled"]
    token_file: str | None  # null: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token
    cpus_per_rank: Amount
    gpus_per_rank: Annotated[float, Field(ge=0)] | None  # null: 1 where ranks use CUDA
    per_node: dict[ResourceName, Amount]  # of the cluster's own resources, for each node
    wait_nodes_s: Annotated[float, Field(ge=0)]  # for nodes that are still to come, before a start
    start_s: Annotated[float, Field(gt=0)]  # for Ray to start an agent
    silent_s: Annotated[float, Field(ge=3)]  # a node that does not answer for so long is lost
    python: str | None  # the ranks' interpreter; null: that of Ray on the node
    workdir: str | None  # where relative paths of the settings begin there
    environment: tuple[str, ...]  # names that travel; NCCL_* stands for all of them
    foreground: bool
