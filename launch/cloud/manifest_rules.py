"""What a RayJob may hold, for what is rendered here: the names of ray.io/v1, and the values that
the schema of Kubernetes leaves open and only the operator knows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # KubeRay adds to it; 47 at most
_TOP = {"apiVersion", "kind", "metadata", "spec"}
_JOB = {
    *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "runtimeEnvYAML", "submissionMode"),
    *("backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("activeDeadlineSeconds", "rayClusterSpec"),
}
_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
_HEAD = {"rayStartParams", "template"}
_WORKERS = _HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}
_POD = {
    *("restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"),
    *("serviceAccountName", "nodeSelector"),
}
_CONTAINER = {"name", "image", "resources", "env", "volumeMounts"}
# As the operator's sources list them.
_ONE_OF = {
    "submissionMode": ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
    "authOptions.mode": ("token", "disabled"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
}


def manifest_problems(document: Mapping[str, Any]) -> list[str]:
    """Empty: a RayJob that KubeRay reads, with nothing in it that it would silently drop."""
    try:
        return list(_problems(document))
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        return [f"{e} is missing or of another kind"]


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown("", document, _TOP)
    if (document["apiVersion"], document["kind"]) != ("ray.io/v1", "RayJob"):
        yield "it is no RayJob of ray.io/v1"
    if not _NAME.fullmatch(document["metadata"]["name"]):
        yield f"metadata.name: {document['metadata']['name']!r} is no name of a RayJob"
    job = document["spec"]
    yield from _unknown("spec", job, _JOB)
    yield from _one_of("submissionMode", job["submissionMode"])
    if not job["entrypoint"]:
        yield "spec.entrypoint is empty"
    cluster = job["rayClusterSpec"]
    yield from _unknown("rayClusterSpec", cluster, _CLUSTER)
    yield from _one_of("authOptions.mode", cluster["authOptions"]["mode"])
    yield from _group("headGroupSpec", cluster["headGroupSpec"], _HEAD)
    for workers in cluster["workerGroupSpecs"]:
        yield from _group("workerGroupSpecs", workers, _WORKERS)
        if not workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]:
            yield "workerGroupSpecs: replicas are not between minReplicas and maxReplicas"


def _group(where: str, group: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    yield from _unknown(where, group, known)
    for name, value in group["rayStartParams"].items():
        if not isinstance(value, str):
            yield f"{where}.rayStartParams.{name} must be text, not {value!r}"
    pod = group["template"]["spec"]
    yield from _unknown(f"{where}.template.spec", pod, _POD)
    yield from _one_of("restartPolicy", pod["restartPolicy"])
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        yield from _unknown(f"{where}.container", container, _CONTAINER)
        if not container["image"]:
            yield f"{where}: a container without an image"
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                yield f"{where}: {mount['name']} is mounted and is no volume"


def _unknown(where: str, found: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for name in found:
        if name not in known:
            yield f"{where}.{name} is unknown".lstrip(".")


def _one_of(where: str, value: str) -> Iterator[str]:
    if value not in _ONE_OF[where]:
        yield f"{where}: {value!r} is none of {', '.join(_ONE_OF[where])}"
