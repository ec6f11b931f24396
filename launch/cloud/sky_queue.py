"""How jobs stand, as `sky jobs queue` and `sky queue` tell it in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.cloud.tool import ask
from launch.run.job_record import Job, JobState

TIMEOUT_S = 120.0  # its API server may have to start
Jobs = Mapping[str, Job]  # under the number of the job, and under its name

_WAITING = ("INIT", "PENDING", "SUBMITTED", "STARTING", "SETTING_UP", "RECOVERING")
_RUNNING = ("RUNNING", "WINDING_DOWN", "CANCELLING")
_ENDED = {"SUCCEEDED": "finished", "CANCELLED": "stopped"}  # FAILED_...: whatever begins with that


def managed_jobs() -> Jobs | None:
    """None: nobody answered."""
    answer = ask(["sky", "jobs", "queue", "--all", "--output", "json"], timeout_s=TIMEOUT_S)
    return read_managed(answer.out) if answer.code == 0 else None


def cluster_jobs(clusters: Sequence[str]) -> dict[str, Jobs] | None:
    """Cluster -> its jobs. None: nobody answered; a cluster that is gone is not in it."""
    answer = ask(["sky", "queue", *clusters, "--output", "json"], timeout_s=TIMEOUT_S)
    return read_clusters(answer.out) if answer.code == 0 else None


def read_managed(text: str) -> Jobs | None:
    listed = _json(text, "[")
    return _by_number(listed) if isinstance(listed, list) else None


def read_clusters(text: str) -> dict[str, Jobs] | None:
    listed = _json(text, "{")
    if not isinstance(listed, dict):
        return None
    return {str(name): _by_number(rows) for name, rows in listed.items() if isinstance(rows, list)}


def _by_number(rows: Sequence[Any]) -> Jobs:
    """The last of a name counts: it is the newest."""
    found: dict[str, Job] = {}
    for row in sorted((r for r in rows if isinstance(r, Mapping)), key=_number):
        if row.get("job_id") is None:
            continue
        job = _job(row)
        found |= {str(row["job_id"]): job, str(row.get("job_name") or row["job_id"]): job}
    return found


def _number(row: Mapping[str, Any]) -> int:
    return int(row.get("job_id") or 0)


def _job(row: Mapping[str, Any]) -> Job:
    status = str(row.get("status") or "").rpartition(".")[2].upper()
    why = ", ".join(str(part) for part in (_place(row), row.get("failure_reason")) if part)
    words = status.lower().replace("_", " ")
    said = f"{words} ({why})" if why else words
    if status in _ENDED or status.startswith("FAILED"):
        return Job(JobState.ENDED, said, _ENDED.get(status, "failed"))
    if status in _RUNNING:
        return Job(JobState.RUNNING, said)
    return Job(JobState.PENDING if status in _WAITING else JobState.UNKNOWN, said)


def _place(row: Mapping[str, Any]) -> str:
    recoveries = row.get("recovery_count") or 0
    again = f"came back {recoveries} times" if recoveries else ""
    return ", ".join(part for part in (str(row.get("infra") or ""), again) if part and part != "-")


def _json(text: str, opening: str) -> Any:
    """Words before it (a server that starts, a hint of a new version) do no harm."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith(opening):
            try:
                return json.loads("\n".join(lines[i:]))
            except ValueError:
                return None
    return None
