"""Words that go to other people's tools: each is what it claims to be, and can be taken for nothing
else. What is missing is said by launch/cloud/needs.py, when a run is about to be started."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch, KubeRayLaunch, RayUpLaunch, SkyLaunch
from trainer.errors import Problem

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # a name of Kubernetes
_SELECTOR = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._/]{0,252}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AMOUNT = re.compile(r"[1-9][0-9]*(\.[0-9]+)?\+?")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_BUCKET = re.compile(r"[a-z][a-z0-9]*://[A-Za-z0-9][A-Za-z0-9._/-]*")
_USER = re.compile(r"://[^/\s]*@")
# name==version, name @ git+https://...@commit, or a file that is sent.
_PINNED = re.compile(
    r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?==[\w.!+-]+"
    r"|[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])? @ git\+(https|ssh)://[\w./~@:-]+@[\w.-]+"
    r"|([^\s:]*/)?[A-Za-z0-9][\w.+-]*\.whl"
)
_WHEEL = "dist/longhaul-0.1.0-py3-none-any.whl"  # sent from here
# Setting -> what it must look like, and an example.
_FORMS: dict[str, tuple[re.Pattern[str], str]] = {
    "infra": (_IMAGE, "aws/us-east-1"),
    "gpu": (_WORD, "H100"),
    "image": (_IMAGE, "docker:nvcr.io/nvidia/pytorch:26.01-py3"),
    "cpus": (_AMOUNT, "16+"),
    "memory_gib": (_AMOUNT, "64+"),
    "run_bucket": (_BUCKET, "s3://bucket/prefix"),
    "package": (_PINNED, _WHEEL),
    "namespace": (_LABEL, "training"),
    "ray_version": (_VERSION, "2.60.0"),
    "gpu_resource": (_SELECTOR, "nvidia.com/gpu"),
    "volume_claim": (_LABEL, "runs"),
    "variables_from": (_LABEL, "longhaul"),
    "service_account": (_LABEL, "trainer"),
    "queue": (_LABEL, "gpus"),
    "region": (_WORD, "us-east-1"),
    "zone": (_WORD, "us-east-1a"),
    "project": (_WORD, "my-project"),
    "head_type": (_WORD, "m5.large"),
    "worker_type": (_WORD, "p4d.24xlarge"),
    "key_name": (_WORD, "my-key"),
    "worker_profile": (_IMAGE, "arn:aws:iam::123456789012:instance-profile/trainer"),
    "ssh_user": (_WORD, "ubuntu"),
}


def cloud_problems(config: Config) -> Iterator[Problem]:
    launch = config.launch
    if not isinstance(launch, CloudLaunch):
        return
    yield from _all_words(launch)
    yield from _path_problems("launch.run_root", launch.run_root)
    if launch.package is not None and _USER.search(launch.package.split(" @ ")[-1]):
        what = "a URL with a user or a token in it would be kept with the run"
        yield Problem("launch.package", what, f"launch.package={_WHEEL}")
    if isinstance(launch, SkyLaunch | KubeRayLaunch):
        yield from _environment_problems(launch.environment)
    if isinstance(launch, SkyLaunch):
        yield from _mount_problems(launch)
    if isinstance(launch, KubeRayLaunch):
        yield from _kuberay_problems(launch)
    if isinstance(launch, RayUpLaunch) and not launch.token_file.startswith(("/", "~/")):
        what = f"{launch.token_file!r} is no full path"
        yield Problem("launch.token_file", what, "launch.token_file=~/.ray/auth_token")


def _all_words(launch: CloudLaunch) -> Iterator[Problem]:
    for name, value in launch:
        where = f"launch.{name}"
        if isinstance(value, str):
            optional = type(launch).model_fields[name].annotation is not str
            yield from _word_problems(where, value, _FORMS.get(name), optional=optional)
        elif isinstance(value, tuple):
            for i, text in enumerate(value):
                yield from _word_problems(f"{where}.{i}", text, None)


def _word_problems(
    where: str, text: str, form: tuple[re.Pattern[str], str] | None, *, optional: bool = False
) -> Iterator[Problem]:
    if not all(c.isprintable() for c in text):
        yield Problem(where, f"{text!r} holds a control character", "")
    elif not text.strip() and optional:
        yield Problem(where, "is empty; null means that it is not asked for", f"{where}=null")
    elif not text.strip():
        yield Problem(where, "is empty", f"{where}={form[1]}" if form is not None else "")
    elif text.startswith("-"):
        yield Problem(where, f"{text!r} would be read as an option", "")
    elif form is not None and not form[0].fullmatch(text):
        yield Problem(where, f"{text!r} is not of the form {form[1]}", f"{where}={form[1]}")


def _path_problems(where: str, text: str) -> Iterator[Problem]:
    """A folder of a machine."""
    plain = text.removeprefix("~")
    if not plain.startswith("/") or ".." in plain.split("/") or not text.isprintable():
        yield Problem(where, f"{text!r} is no full path of a machine", f"{where}=/mnt/runs")


def _environment_problems(names: tuple[str, ...]) -> Iterator[Problem]:
    for i, name in enumerate(names):
        if not _VARIABLE.fullmatch(name):
            what = f"{name!r} is no name of a variable; values stay in your environment"
            yield Problem(f"launch.environment.{i}", what, "launch.environment=[WANDB_API_KEY]")


def _mount_problems(launch: SkyLaunch) -> Iterator[Problem]:
    for target, source in launch.mounts.items():
        yield from _path_problems("launch.mounts", target)
        yield from _word_problems(
            f"launch.mounts.{target}",
            source,
            (_BUCKET, "s3://bucket/prefix") if "://" in source else None,
        )
    for target, name in launch.volumes.items():
        yield from _path_problems("launch.volumes", target)
        yield from _word_problems(f"launch.volumes.{target}", name, (_LABEL, "my-volume"))


def _kuberay_problems(launch: KubeRayLaunch) -> Iterator[Problem]:
    for key, value in launch.node_selector.items():
        for text in (key, value):
            yield from _word_problems("launch.node_selector", text, (_SELECTOR, "kind=gpu"))
    if launch.run_root.startswith("~"):
        what = f"{launch.run_root!r}: a volume is mounted at a full path"
        yield Problem("launch.run_root", what, "launch.run_root=/longhaul")
    if launch.package is not None:
        what = "nothing is installed into pods: the image has this package"
        yield Problem("launch.package", what, "launch.package=null")
    if launch.shm_gib >= launch.memory_gib:
        what = f"{launch.shm_gib} GiB of shared memory leave nothing of {launch.memory_gib} GiB"
        yield Problem("launch.shm_gib", what, f"launch.shm_gib={max(1, launch.memory_gib // 4)}")
    if launch.environment and launch.variables_from is None:
        what = "the values come from a Secret of Kubernetes, and none is named"
        yield Problem("launch.variables_from", what, "launch.variables_from=longhaul")
