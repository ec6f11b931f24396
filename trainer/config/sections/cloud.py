"""Machines that are rented: what is asked of SkyPilot, KubeRay and `ray up`.

No prices and no kinds of GPU are known here: the user's own tool knows them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainer.config.sections.base import Section


class CloudLaunch(Section):
    """What the three have in common. Folders named here are folders of the rented machines."""

    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL
    run_root: str  # holds run folders
    keeps_run_root: bool  # it outlives a machine, and is one folder for all of them
    python: str  # the interpreter that has, or gets, this package
    package: str | None  # what pip installs, pinned; a .whl of this machine is sent


class SkyLaunch(CloudLaunch):
    kind: Literal["sky"]
    managed: bool  # a managed job (comes back after a preemption), not a cluster of one job
    infra: str | None  # aws, aws/us-east-1, gcp/us-central1/us-central1-a, k8s/context
    gpu: str | None  # as `sky gpus list` names it; ranks_per_node of them a machine; None: none
    spot: bool
    recovery: Literal["EAGER_NEXT_REGION", "FAILOVER"]
    image: str | None  # docker:name, or the cloud's own
    cpus: str | None  # of a machine: "16", or "16+" for at least so many
    memory_gib: str | None  # of a machine: "64", or "64+"
    disk_gib: Annotated[int, Field(ge=1)] | None
    run_bucket: str | None  # s3://bucket/prefix, mounted where run_root is
    mounts: dict[str, str]  # folder of the machines -> bucket, or path of this machine
    volumes: dict[str, str]  # folder of the machines -> a volume of `sky volumes`
    setup: tuple[str, ...]  # lines of shell, before the package is installed
    environment: tuple[str, ...]  # names; SkyPilot takes the values from this environment
    show_offers: bool  # ask `sky gpus list` what there is and what it costs, before handing over


class KubeRayLaunch(CloudLaunch):
    kind: Literal["kuberay"]
    context: str | None  # of kubectl; None: its current one
    namespace: str
    image: str | None  # with this package and Ray
    ray_version: str  # in that image
    gpu_resource: str  # what a GPU is called there
    node_selector: dict[str, str]
    cpus_per_node: Annotated[int, Field(ge=1)]
    memory_gib: Annotated[int, Field(ge=1)]  # of a machine
    shm_gib: Annotated[int, Field(ge=1)]  # /dev/shm, part of that memory
    volume_claim: str | None  # mounted where run_root is
    variables_from: str | None  # a Secret of Kubernetes; `environment` names keys of it
    environment: tuple[str, ...]
    service_account: str | None
    queue: str | None  # of Kueue
    retries: Annotated[int, Field(ge=0)]  # whole new sets of machines after one was lost
    time_limit_h: Annotated[float, Field(gt=0)] | None = Field(examples=[12])
    keep_s: Annotated[int, Field(ge=0)]  # machines and logs, after the end

    @field_validator("node_selector", mode="before")
    @classmethod
    def _labels(cls, value: Any) -> Any:
        """`spot: true` is the label "true" there, as nothing but text is one."""
        if not isinstance(value, dict):
            return value
        return {k: str(v).lower() if isinstance(v, bool) else v for k, v in value.items()}


class RayUpLaunch(CloudLaunch):
    kind: Literal["ray_up"]
    provider: Literal["aws", "gcp"]
    region: str | None
    zone: str | None
    project: str | None  # of GCP
    head_type: str  # kind of machine that only schedules
    worker_type: str | None  # kind of machine that trains
    gpu: str | None  # GCP, for machines that come without: nvidia-tesla-t4
    image: str | None  # AMI, or projects/.../images/...
    spot: bool
    disk_gib: Annotated[int, Field(ge=1)]
    key_name: str | None  # AWS: an existing key pair, with identity_file
    worker_profile: str | None  # AWS: instance profile that may write to the bucket
    ssh_user: str
    identity_file: str | None
    ssh_proxy_command: str | None
    ray_version: str
    token_file: str  # of this machine; its text never stands in a rendered file
    environment_file: str | None  # of this machine: NAME=value lines, sent over ssh
    setup: tuple[str, ...]
    idle_minutes: Annotated[int, Field(ge=1)]  # until a machine without work is given back
