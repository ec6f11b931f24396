"""The RayJob of a plan, for the KubeRay operator (ray.io/v1). Pure.

One pod schedules and has no CPUs to give; the ranks run in pods of one worker group. With one
machine the entry point is itself placed on it, by the GPUs or CPUs that it asks for.
"""

from __future__ import annotations

import shlex
from typing import Any

from launch.cloud.carried import VARIABLE, carried_by, carried_text
from launch.cloud.names import cluster_name, job_name
from launch.cloud.sky_task import NODE
from launch.cloud.yaml_text import yaml_text
from trainer.config.sections.cloud import KubeRayLaunch
from trainer.plan import RunPlan

MANIFEST = "submission/rayjob.yaml"  # under the attempt's folder
_HEAD = {"cpu": "2", "memory": "8Gi"}
_MARGIN_S = 15  # from the end of the ranks' grace to that of the pod


def manifest_text(plan: RunPlan, launch: KubeRayLaunch) -> str:
    about = "A RayJob; what the machine does: python -m launch.cloud.node"
    return yaml_text(manifest(plan, launch), about=about)


def manifest(plan: RunPlan, launch: KubeRayLaunch) -> dict[str, Any]:
    """Raises: Refused if the settings are too long to be sent."""
    labels = {"app.kubernetes.io/managed-by": "longhaul", "longhaul/run": cluster_name(plan)}
    if launch.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = launch.queue
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job_name(plan), "namespace": launch.namespace, "labels": labels},
        "spec": _job(plan, launch),
    }


def commands(launch: KubeRayLaunch, *, file: str) -> tuple[str, ...]:
    return (*kubectl(launch.context), "apply", "--validate=strict", "-f", file)


def kubectl(context: str | None) -> tuple[str, ...]:
    return ("kubectl",) if context is None else ("kubectl", f"--context={context}")


def _job(plan: RunPlan, launch: KubeRayLaunch) -> dict[str, Any]:
    resources = plan.config.resources
    carried = {"env_vars": {VARIABLE: carried_text(carried_by(plan))}}
    job: dict[str, Any] = {
        "entrypoint": shlex.join([launch.python, "-m", NODE]),
        "runtimeEnvYAML": yaml_text(carried, about="read by the entry point"),
        "submissionMode": "K8sJobMode",
        "backoffLimit": launch.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": launch.keep_s,
        "rayClusterSpec": {
            "rayVersion": launch.ray_version,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
                "template": _pod("ray-head", _HEAD, plan, launch),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "ranks",
                    "replicas": resources.nodes,
                    "minReplicas": resources.nodes,
                    "maxReplicas": resources.nodes,
                    "rayStartParams": {},
                    "template": _pod("ray-worker", _limits(plan, launch), plan, launch),
                }
            ],
        },
    }
    if resources.nodes == 1:
        kind = "entrypointNumGpus" if plan.device == "cuda" else "entrypointNumCpus"
        job[kind] = resources.ranks_per_node
    if launch.time_limit_h is not None:
        job["activeDeadlineSeconds"] = round(launch.time_limit_h * 3600)
    return job


def _limits(plan: RunPlan, launch: KubeRayLaunch) -> dict[str, Any]:
    found: dict[str, Any] = {"cpu": str(launch.cpus_per_node), "memory": f"{launch.memory_gib}Gi"}
    if plan.device == "cuda":
        found[launch.gpu_resource] = plan.config.resources.ranks_per_node
    return found


def _pod(name: str, limits: dict[str, Any], plan: RunPlan, launch: KubeRayLaunch) -> dict[str, Any]:
    trains = name == "ray-worker"
    sees_runs = trains or plan.config.resources.nodes > 1  # the head drives several machines
    volumes = [*_shm(launch, trains), *_runs(launch, sees_runs)]
    container = {
        "name": name,
        "image": launch.image,
        "resources": {"requests": dict(limits), "limits": dict(limits)},
        "env": _environment(launch, given=sees_runs),
        "volumeMounts": [{"name": v["name"], "mountPath": path} for path, v in volumes],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": round(launch.grace_s) + _MARGIN_S,
        "containers": [container],
        "volumes": [volume for _, volume in volumes],
    }
    if launch.service_account is not None:
        spec["serviceAccountName"] = launch.service_account
    if launch.node_selector and trains:
        spec["nodeSelector"] = dict(launch.node_selector)
    return {"metadata": {"labels": {"longhaul/run": cluster_name(plan)}}, "spec": spec}


def _shm(launch: KubeRayLaunch, wanted: bool) -> list[tuple[str, dict[str, Any]]]:
    """(where it is mounted, the volume)"""
    memory = {"medium": "Memory", "sizeLimit": f"{launch.shm_gib}Gi"}
    return [("/dev/shm", {"name": "shm", "emptyDir": memory})] if wanted else []


def _runs(launch: KubeRayLaunch, wanted: bool) -> list[tuple[str, dict[str, Any]]]:
    """(where it is mounted, the volume)"""
    if launch.volume_claim is None or not wanted:
        return []
    claim = {"claimName": launch.volume_claim}
    return [(launch.run_root, {"name": "runs", "persistentVolumeClaim": claim})]


def _environment(launch: KubeRayLaunch, *, given: bool) -> list[dict[str, Any]]:
    """Values of secrets are filled in by Kubernetes, from the Secret that is named."""
    found: list[dict[str, Any]] = [
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(round(launch.grace_s) + _MARGIN_S)}
    ]
    for name in launch.environment if given else ():
        key = {"name": launch.variables_from, "key": name}
        found.append({"name": name, "valueFrom": {"secretKeyRef": key}})
    return found
