"""How a RayJob stands, from what `kubectl get rayjob --output=json` says of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from launch.run.job_record import Job, JobState

_WAITING = ("", "Initializing", "Waiting", "Retrying", "Suspended")
_RUNNING = ("Running", "Suspending")
_ENDED = ("Complete", "Failed", "ValidationFailed")
_VERDICTS = {"SUCCEEDED": "finished", "STOPPED": "stopped"}
_DASHBOARD = "http://127.0.0.1:8265"  # as the head's pod sees it


def job_of(listed: Mapping[str, Any] | None, name: str) -> Job:
    """`listed`: name -> RayJob; None: nobody answered."""
    if listed is None:
        return Job(JobState.UNKNOWN, "kubectl gives no answer")
    if name not in listed:
        return Job(JobState.UNKNOWN, f"there is no rayjob {name} (any more)")
    status = listed[name].get("status") or {}
    stage = str(status.get("jobDeploymentStatus") or "")
    words = [stage or "not looked at yet", status.get("jobStatus"), status.get("message")]
    said = ", ".join(" ".join(str(word).split()) for word in words if word)
    if stage in _ENDED:
        return Job(JobState.ENDED, said, _VERDICTS.get(str(status.get("jobStatus")), "failed"))
    if stage in _RUNNING:
        return Job(JobState.RUNNING, said)
    return Job(JobState.PENDING if stage in _WAITING else JobState.UNKNOWN, said)


def stop_words(text: str, name: str) -> list[str] | None:
    """What to tell kubectl so that it saves and stops; empty: it has ended. None: unreadable."""
    try:
        status = json.loads(text).get("status") or {}
        service = status.get("rayClusterStatus", {}).get("head", {}).get("serviceName")
        job, stage = status.get("jobId"), str(status.get("jobDeploymentStatus") or "")
    except (ValueError, TypeError, AttributeError):
        return None
    if stage in _ENDED:
        return []
    if stage != "Running" or not service or not job:
        return ["delete", "rayjob", name, "--wait=false"]
    ray = ["ray", "job", "stop", "--no-wait", "--address", _DASHBOARD, str(job)]
    return ["exec", f"service/{service}", "--", *ray]
