"""What sky, kubectl and ray say, read: recorded in their own form, with what may go wrong in it."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from launch.backends.ray_up import read_status
from launch.cloud.kuberay_manifest import manifest
from launch.cloud.manifest_rules import manifest_problems
from launch.cloud.offers import read_offers, say_offers
from launch.cloud.rayjob_status import job_of, stop_words
from launch.cloud.sky_queue import read_clusters, read_managed
from launch.run.job_record import JobState
from tests.helpers.cloud import KUBERAY, plan_for
from tests.helpers.configs import config
from trainer.config.sections.cloud import KubeRayLaunch
from trainer.errors import Refused


def _machine(cloud: str, price: float | None, spot: float | None) -> dict[str, Any]:
    return {
        "cloud": cloud,
        "instance_type": f"{cloud}-8",
        "accelerator_name": "H100",
        "accelerator_count": 8.0,
        "cpu_count": 192.0,
        "device_memory": 80.0,
        "memory": 2048.0,
        "price": price,
        "spot_price": spot,
        "region": "r1",
    }


def test_the_cheapest_offer_is_said_in_the_tools_own_figures() -> None:
    listed = {"H100": [_machine("a", 60.0, 31.5), _machine("b", 50.0, None)]}
    found = read_offers("Fetching the catalogue ...\n" + json.dumps(listed))
    assert (
        say_offers("H100", 8, found, spot=False) == "sky: 8 x H100 from $50.00 an hour (b b-8 r1)"
    )
    assert say_offers("H100", 8, found, spot=True) == (
        "sky: 8 x H100 spot from $31.50 an hour (a a-8 r1)"
    )
    without = read_offers(json.dumps({"H100": [_machine("b", None, float("nan"))]}))
    assert say_offers("H100", 8, without, spot=True) == (
        "sky: 1 machines with 8 x H100, none with a price"
    )


def test_without_an_answer_nothing_is_claimed() -> None:
    for text in ("", "not json", "[1]", '{"H100": [{"cloud": "a"}]}', '{"H100": 3}'):
        assert read_offers(text) is None
        assert say_offers("H100", 8, read_offers(text), spot=True) == ""


def test_a_gpu_that_nobody_offers_is_refused() -> None:
    with pytest.raises(Refused, match="sky knows no machine with 3 x H900"):
        say_offers("H900", 3, read_offers("{}"), spot=True)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", JobState.PENDING),
        ("STARTING", JobState.PENDING),
        ("RECOVERING", JobState.PENDING),
        ("RUNNING", JobState.RUNNING),
        ("CANCELLING", JobState.RUNNING),
        ("SUCCEEDED", JobState.ENDED),
        ("CANCELLED", JobState.ENDED),
        ("FAILED_NO_RESOURCE", JobState.ENDED),
        ("ManagedJobStatus.RUNNING", JobState.RUNNING),
        ("OF_A_LATER_VERSION", JobState.UNKNOWN),
    ],
)
def test_the_queue_of_managed_jobs(status: str, state: JobState) -> None:
    row = {"job_id": 7, "job_name": "lh-x-a1", "status": status, "infra": "AWS (us-east-1)"}
    jobs = read_managed("Starting the server\n" + json.dumps([row], indent=2))
    assert jobs is not None
    assert jobs["7"].state is state
    assert jobs["lh-x-a1"] == jobs["7"]


def test_why_a_job_waits_or_failed_is_told() -> None:
    row = {"job_id": 7, "status": "RECOVERING", "infra": "AWS", "recovery_count": 2}
    row |= {"failure_reason": "no capacity"}
    jobs = read_managed(json.dumps([row]))
    assert jobs is not None
    assert jobs["7"].why == "recovering (AWS, came back 2 times, no capacity)"


def test_of_jobs_with_one_name_the_newest_counts() -> None:
    rows = [{"job_id": n, "job_name": "x", "status": s} for n, s in ((9, "RUNNING"), (8, "FAILED"))]
    jobs = read_managed(json.dumps(rows))
    assert jobs is not None
    assert jobs["x"].state is JobState.RUNNING


def test_the_queue_of_clusters() -> None:
    text = json.dumps({"lh-x": [{"job_id": 1, "job_name": "x", "status": "SETTING_UP"}]}, indent=2)
    clusters = read_clusters(text)
    assert clusters is not None
    assert clusters["lh-x"]["1"].state is JobState.PENDING
    assert read_clusters("no answer") is None
    assert read_managed("{}") is None
    assert read_managed("[cut off") is None


@pytest.mark.parametrize(
    ("stage", "state"),
    [
        (None, JobState.PENDING),
        ("Initializing", JobState.PENDING),
        ("Running", JobState.RUNNING),
        ("Retrying", JobState.PENDING),
        ("Complete", JobState.ENDED),
        ("Failed", JobState.ENDED),
        ("OfALaterVersion", JobState.UNKNOWN),
    ],
)
def test_how_a_rayjob_stands(stage: str | None, state: JobState) -> None:
    status = {"jobDeploymentStatus": stage, "message": "two\nlines"}
    job = job_of({"x": {"status": status}}, "x")
    assert job.state is state
    assert "\n" not in job.why
    assert job_of({"x": {}}, "x").state is JobState.PENDING
    assert job_of({}, "x").state is JobState.UNKNOWN
    assert job_of(None, "x").state is JobState.UNKNOWN


def test_a_running_rayjob_is_told_to_save_and_one_that_waits_is_deleted() -> None:
    head = {"head": {"serviceName": "x-head-svc"}}
    status = {"jobDeploymentStatus": "Running", "jobId": "j-1", "rayClusterStatus": head}
    words = stop_words(json.dumps({"status": status}), "x")
    assert words is not None
    assert words[:3] == ["exec", "service/x-head-svc", "--"]
    assert words[-1] == "j-1"
    assert stop_words("{}", "x") == ["delete", "rayjob", "x", "--wait=false"]
    assert stop_words(json.dumps({"status": {"jobDeploymentStatus": "Complete"}}), "x") == []
    assert stop_words("no json", "x") is None


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Status for job 'x': PENDING\nStatus message: waits", JobState.PENDING),
        ("2026 INFO --- Status for job 'x': RUNNING", JobState.RUNNING),
        ("Job 'x' succeeded", JobState.ENDED),
        ("Job 'x' failed", JobState.ENDED),
        ("Job 'x' was stopped", JobState.ENDED),
        ("Connection closed", JobState.UNKNOWN),
    ],
)
def test_what_ray_says_of_a_job(text: str, state: JobState) -> None:
    assert read_status(text).state is state


def test_a_manifest_that_the_operator_would_not_read_is_found() -> None:
    plan = plan_for(config(*KUBERAY))
    launch = plan.config.launch
    assert isinstance(launch, KubeRayLaunch)
    right = manifest(plan, launch)
    assert manifest_problems(right) == []
    cluster = right["spec"]["rayClusterSpec"]

    def with_change(*path: Any, value: Any) -> list[str]:
        document = deepcopy(right)
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return manifest_problems(document)

    head = ("spec", "rayClusterSpec", "headGroupSpec")
    said = {
        "submissionMode: 'Bogus' is none of": with_change("spec", "submissionMode", value="Bogus"),
        "authOptions.mode: 'off'": with_change(*head[:2], "authOptions", value={"mode": "off"}),
        "spec.entryPoint is unknown": with_change("spec", "entryPoint", value="x"),
        "is no name of a RayJob": with_change("metadata", "name", value="Not-A-Name"),
        "must be text, not 0": with_change(*head, "rayStartParams", value={"num-cpus": 0}),
        "it is no RayJob": with_change("kind", value="Job"),
        "is missing or of another kind": with_change("spec", "rayClusterSpec", value={}),
    }
    for words, problems in said.items():
        assert any(words in problem for problem in problems), (words, problems)
    workers = deepcopy(cluster["workerGroupSpecs"])
    workers[0]["template"]["spec"]["volumes"] = []
    problems = with_change(*head[:2], "workerGroupSpecs", value=workers)
    assert "workerGroupSpecs: shm is mounted and is no volume" in problems
