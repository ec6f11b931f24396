"""KubeRay: a RayJob that brings its own pods. Everything goes through the user's `kubectl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.base import Job, JobState, Submission, spec_of
from launch.cloud.handing import hand_over
from launch.cloud.kuberay_manifest import MANIFEST, commands, kubectl, manifest, manifest_text
from launch.cloud.manifest_rules import manifest_problems
from launch.cloud.names import job_name
from launch.cloud.needs import refuse_what_lacks
from launch.cloud.rayjob_status import job_of, stop_words
from launch.cloud.tool import Answer, ask, refuse_without
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.run.job_record import JobRecord, read_job
from trainer.config.sections.cloud import KubeRayLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles, RunFiles

_HOW = "install it and point it at your cluster: kubectl config current-context"
_TIMEOUT_S = 60.0
_GONE = "NotFound"  # as kubectl says it
_UNREACHED = re.compile(
    r"connection refused|no such host|i/o timeout|network is unreachable|gave no answer in \d+ s"
    r"|TLS handshake timeout|Unauthorized|must be logged in|context \S+ does not exist"
)
_KEYS = "go-template={{range $key, $value := .data}}{{$key}} {{end}}"  # no value leaves kubectl


@dataclass(frozen=True)
class KubeRayBackend:
    name: str = "kuberay"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        launch = _section(plan)
        file = f"{run_folder}/attempts/{plan.attempt:04d}/{MANIFEST}"
        files = {RANKS_FILE: spec_text(spec_of(plan)), MANIFEST: manifest_text(plan, launch)}
        return Submission(argv=commands(launch, file=file), files=files)

    def preflight(self, plan: RunPlan) -> None:
        """Raises: ConfigError for what is missing; Refused without `kubectl`, or in the words of
        the cluster if it would not take the manifest."""
        launch = _section(plan)
        refuse_what_lacks(plan, launch)
        if wrong := manifest_problems(manifest(plan, launch)):
            raise Refused(f"the manifest is not one that KubeRay reads: {'; '.join(wrong)}")
        refuse_without("kubectl", kind=self.name, how=_HOW)
        argv = [*kubectl(launch.context), "apply", "--dry-run=server", "--validate=strict"]
        text = manifest_text(plan, launch)
        answer = ask([*argv, "-f", "-"], stdin=text, timeout_s=_TIMEOUT_S)
        if answer.code != 0:
            raise Refused(
                _unreached(answer) or f"the cluster does not take the RayJob: {answer.why}"
            )
        _refuse_without_keys(launch)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Raises: Refused if the cluster does not take it."""
        run = RunFiles(run_folder)
        files = run.attempt(attempt)
        plan = RunPlan.model_validate(read_json(files.plan))
        record = JobRecord(self.name, job_name(plan), _section(plan).namespace)
        hand_over([submission.argv, *submission.then], files, record=lambda said: record)
        place = f"rayjob {record.job} in {record.cluster}"
        print(f"{run.name}: {place} is with Kubernetes; watch it with longhaul status {run.root}")
        return 0

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        """One question a namespace of a cluster."""
        asked: dict[tuple[str, ...], Mapping[str, Any] | None] = {}
        found = []
        for files in attempts:
            record = read_job(files)
            if record is None:
                found.append(Job(JobState.UNKNOWN, "no job is recorded"))
                continue
            place = (*kubectl(_context(files)), f"--namespace={record.cluster}")
            if place not in asked:
                asked[place] = _listed(place)
            found.append(job_of(asked[place], record.job))
        return found

    def stop(self, files: AttemptFiles) -> None:
        """The job of a running cluster is told to save and stop; one that waits is deleted."""
        record = read_job(files)
        if record is None:
            return
        place = (*kubectl(_context(files)), f"--namespace={record.cluster}")
        answer = ask([*place, "get", "rayjob", record.job, "--output=json"], timeout_s=_TIMEOUT_S)
        if answer.code != 0 and _GONE in answer.err:
            return
        words = stop_words(answer.out, record.job) if answer.code == 0 else None
        if words is None:
            raise Refused(f"rayjob {record.job} cannot be stopped: {answer.why}")
        if words and (answer := ask([*place, *words], timeout_s=_TIMEOUT_S)).code != 0:
            raise Refused(f"rayjob {record.job} cannot be stopped: {answer.why}")


def _unreached(answer: Answer) -> str:
    """What is wrong with the way to the cluster; empty: it has answered."""
    said = answer.err or answer.out
    found = None if "webhook" in said else _UNREACHED.search(said)  # those are the cluster's own
    return f"kubectl reaches no cluster ({found[0]}); {_HOW}" if found else ""


def _refuse_without_keys(launch: KubeRayLaunch) -> None:
    """Pods without them would wait for ever. Raises: Refused if the Secret lacks one."""
    secret = launch.variables_from
    if secret is None:
        return
    argv = [*kubectl(launch.context), "get", "secret", secret, f"--namespace={launch.namespace}"]
    answer = ask([*argv, "-o", _KEYS], timeout_s=_TIMEOUT_S)
    if answer.code != 0:
        raise Refused(f"launch.variables_from={secret}: {answer.why}")
    if lacks := [name for name in launch.environment if name not in answer.out.split()]:
        what = f"launch.variables_from={secret}: the Secret has no key {', '.join(lacks)}"
        raise Refused(f"{what}; add it there, or take it out of launch.environment")


def _listed(place: Sequence[str]) -> Mapping[str, Any] | None:
    """Name -> RayJob, as JSON says it; None: nobody answered."""
    argv = [*place, "get", "rayjobs", "--selector=longhaul/run", "--output=json"]
    answer = ask(argv, timeout_s=_TIMEOUT_S)
    try:
        items = json.loads(answer.out)["items"] if answer.code == 0 else None
        return None if items is None else {one["metadata"]["name"]: one for one in items}
    except (ValueError, TypeError, KeyError):
        return None


def _context(files: AttemptFiles) -> str | None:
    try:
        context = read_json(files.plan)["config"]["launch"]["context"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(context) if context else None


def _section(plan: RunPlan) -> KubeRayLaunch:
    launch = plan.config.launch
    assert isinstance(launch, KubeRayLaunch)
    return launch
