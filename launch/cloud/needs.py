"""What a rented machine needs that only a person can give, said before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from launch.cloud.install import is_wheel
from launch.cloud.sky_task import local_sources
from trainer.config.sections.cloud import CloudLaunch, KubeRayLaunch, RayUpLaunch, SkyLaunch
from trainer.errors import ConfigError, Problem
from trainer.plan import RunPlan


def refuse_what_lacks(plan: RunPlan, launch: CloudLaunch) -> None:
    """Raises: ConfigError with everything that is missing."""
    found = [*_anywhere(plan, launch), *_machines(plan, launch)]
    if isinstance(launch, SkyLaunch):
        found += _sky(plan, launch)
    elif isinstance(launch, KubeRayLaunch):
        found += _kuberay(plan, launch)
    elif isinstance(launch, RayUpLaunch):
        found += _ray_up(launch)
    if found:
        raise ConfigError(found)


def _anywhere(plan: RunPlan, launch: CloudLaunch) -> Iterator[Problem]:
    if not _stays(plan, launch):
        what = "nothing of the run would outlive the machine it is on"
        yield Problem("checkpoint.remote.url", what, "checkpoint.remote.url=s3://bucket/prefix")
    if launch.package is not None and is_wheel(launch.package):
        if not Path(launch.package).expanduser().is_file():
            what = f"there is no file {launch.package} to send"
            yield Problem("launch.package", what, "python -m build --wheel makes one")
    elif launch.package is None and isinstance(launch, SkyLaunch) and launch.image is None:
        what = "without an image that has this package, it must be installed"
        yield Problem("launch.package", what, "launch.package=dist/longhaul-0.1.0-py3-none-any.whl")


def _stays(plan: RunPlan, launch: CloudLaunch) -> bool:
    url = plan.config.checkpoint.remote.url
    return (url is not None and not url.startswith("file:")) or _keeps(launch) or _bucket(launch)


def _keeps(launch: CloudLaunch) -> bool:
    claimed = isinstance(launch, KubeRayLaunch) and launch.volume_claim is not None
    return launch.keeps_run_root or claimed


def _bucket(launch: CloudLaunch) -> bool:
    return isinstance(launch, SkyLaunch) and launch.run_bucket is not None


def _machines(plan: RunPlan, launch: CloudLaunch) -> Iterator[Problem]:
    nodes = plan.config.resources.nodes
    if nodes == 1:
        return
    if not _keeps(launch):
        what = f"{nodes} machines need one folder that all of them see"
        fix = "a volume or a network folder there, and launch.keeps_run_root=true"
        yield Problem("launch.run_root", what, fix)
    store_root = plan.config.data.store_root
    if not store_root.startswith(("/", "~/")):
        what = f"{store_root!r} would be on each machine's own disk, and {nodes} share the data"
        yield Problem("data.store_root", what, f"'data.store_root=\"{launch.run_root}/stores\"'")


def _sky(plan: RunPlan, launch: SkyLaunch) -> Iterator[Problem]:
    if launch.gpu is None and plan.device == "cuda":
        what = "resources.device=cuda needs GPUs, and no kind of them is named"
        yield Problem("launch.gpu", what, "launch.gpu=H100")
    if launch.gpu is not None and plan.device == "cpu":
        what = f"resources.device=cpu would leave {launch.gpu} unused"
        yield Problem("launch.gpu", what, "launch.gpu=null")
    for name in launch.environment:
        if name not in os.environ:
            what = f"{name} is to be passed on, but it is not set here"
            yield Problem("launch.environment", what, f"export {name}=...")
    for source in local_sources(launch):
        if not Path(source).expanduser().exists():
            yield Problem("launch.mounts", f"there is no {source} to send", "")


def _kuberay(plan: RunPlan, launch: KubeRayLaunch) -> Iterator[Problem]:
    if launch.image is None:
        what = "pods need an image that has this package and Ray"
        yield Problem("launch.image", what, "launch.image=registry.example.org/longhaul:0.1.0")
    ranks = plan.config.resources.ranks_per_node
    if plan.device == "cpu" and ranks > launch.cpus_per_node:
        what = f"{launch.cpus_per_node} cores hold no {ranks} ranks: the job would wait for ever"
        yield Problem("launch.cpus_per_node", what, f"launch.cpus_per_node={ranks}")


def _ray_up(launch: RayUpLaunch) -> Iterator[Problem]:
    fixes = {"region": "us-east-1", "worker_type": "p4d.24xlarge", "image": "ami-0123456789abcdef0"}
    if launch.provider == "gcp":
        image = "projects/my-project/global/images/my-image"
        fixes = {"region": "us-central1", "worker_type": "a2-highgpu-8g", "image": image}
        fixes |= {"zone": "us-central1-a", "project": "my-project"}
    for name, example in fixes.items():
        if getattr(launch, name) is None:
            what = f"{launch.provider} does not choose one"
            yield Problem(f"launch.{name}", what, f"launch.{name}={example}")
    yield from _of_another_place(launch)
    files = {
        "token_file": (launch.token_file, "ray get-auth-token --generate makes one"),
        "environment_file": (launch.environment_file, "lines of NAME=value"),
        "identity_file": (launch.identity_file, "ssh-keygen makes one"),
    }
    for name, (path, fix) in files.items():
        if path is not None and not Path(path).expanduser().is_file():
            yield Problem(f"launch.{name}", f"there is no file {path}", fix)
    if launch.key_name is not None and launch.identity_file is None:
        what = f"the private half of the key pair {launch.key_name} is needed to log in"
        yield Problem("launch.identity_file", what, "launch.identity_file=~/.ssh/my-key.pem")


def _of_another_place(launch: RayUpLaunch) -> Iterator[Problem]:
    """What the cloud would refuse once the head is asked for: Ray's schema leaves it open."""
    fits = {"aws": ("m5.large", "p4d.24xlarge"), "gcp": ("n2-standard-2", "a2-highgpu-8g")}
    given = {"head_type": launch.head_type, "worker_type": launch.worker_type}
    for (name, kind), example in zip(given.items(), fits[launch.provider], strict=True):
        # Machines of AWS have a dot in their names, those of GCP have none.
        if kind is not None and ("." in kind) is not (launch.provider == "aws"):
            what = f"{kind} is no machine of {launch.provider}"
            yield Problem(f"launch.{name}", what, f"launch.{name}={example}")
    zone, region = launch.zone, launch.region
    if zone is not None and region is not None and not zone.startswith(region):
        example = f"{region}a" if launch.provider == "aws" else f"{region}-a"
        yield Problem("launch.zone", f"{zone} is not in {region}", f"launch.zone={example}")
