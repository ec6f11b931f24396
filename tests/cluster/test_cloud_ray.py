"""The job that `ray up` submits, on a real Ray cluster: its command, token, place and end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.backends.ray_up import read_status
from launch.cloud.carried import VARIABLE, carried_by, carried_text
from launch.cloud.ray_cluster import commands, job_words
from launch.cloud.sky_task import NODE
from launch.run.job_record import JobState
from launch.run.run_folder import read_record
from tests.helpers.agent_process import wait_for
from tests.helpers.cloud import RAY_UP, RUN_ID, plan_for
from tests.helpers.configs import config
from tests.helpers.fake_ranks import blank_store
from tests.helpers.ray_cluster import DASHBOARD, RayCluster, ray_cluster
from trainer.config.sections.cloud import RayUpLaunch
from trainer.errors import Exit
from trainer.plan import RunPlan
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2, dashboard=True) as made:
        yield made


class Job:
    """What `launch=ray_up` would type on its head, typed on this one."""

    def __init__(self, cluster: RayCluster, folder: Path, name: str, *more: str) -> None:
        self.cluster = cluster
        (folder / "corpus.txt").write_text("some text\n")
        self.plan = _plan(folder, f"run.name={name}", *more)
        assert isinstance(self.plan.config.launch, RayUpLaunch)
        self.launch = self.plan.config.launch
        self.run = RunFiles(folder / "runs" / name)
        *_, submit = commands(self.plan, self.launch, file="cluster.yaml")
        words = shlex.split(submit[-1].replace(NODE, "tests.helpers.fake_cloud_node"))
        self.words = words
        self.name = words[words.index("--submission-id") + 1]

    def submit(self, behaviours: dict[str, Any]) -> None:
        at = self.words.index("--runtime-env-json") + 1
        sent = {"FAKE_BEHAVIOUR": json.dumps(behaviours)} | json.loads(self.words[at])["env_vars"]
        assert sent[VARIABLE] == carried_text(carried_by(self.plan))
        self._type([*self.words[:at], json.dumps({"env_vars": sent}), *self.words[at + 1 :]])

    def ask(self, verb: str, *more: str) -> str:
        return self._type(job_words(self.launch, verb, *more, self.name))

    def until_over(self) -> None:
        wait_for(lambda: read_status(self.ask("status")).state is JobState.ENDED, seconds=400)

    def _type(self, words: list[str]) -> str:
        head = self.cluster.lab.login
        there = f"http://{head.address}:{DASHBOARD}"
        line = shlex.join(words).replace("http://127.0.0.1:8265", there)
        return head.run(["bash", "-c", line], env=self.cluster.environment(), timeout=300)


def _plan(folder: Path, *more: str) -> RunPlan:
    wanted = config(
        *RAY_UP,
        "data=text_files",
        f"data.sources.files.paths=[{folder}/corpus.txt]",
        f"data.store_root={folder}/stores",
        "checkpoint.remote.url=null",
        f"launch.python={sys.executable}",
        f"launch.run_root={folder}/runs",
        "launch.keeps_run_root=true",
        "resources.device=cpu",
        "resources.ranks_per_node=2",
        *more,
    )
    blank_store(wanted)
    return plan_for(wanted)


def test_one_machine_is_found_by_what_the_job_asks_for_and_saves_when_told_to(
    cluster: RayCluster, tmp_path: Path
) -> None:
    job = Job(cluster, tmp_path, "one")
    job.submit({"0": ["wait"], "1": ["wait"]})
    root = job.run.attempt(1).root
    wait_for(lambda: (root / "up-0").exists() and (root / "up-1").exists(), seconds=400)
    assert read_json(job.run.attempt(1).agent)["host"].startswith("node")  # the head has no CPUs
    assert read_status(job.ask("status")).state is JobState.RUNNING
    job.ask("stop", "--no-wait")
    job.until_over()
    wait_for(job.run.attempt(1).ended.exists, seconds=400)
    assert set(read_json(job.run.attempt(1).ended)["codes"].values()) == {Exit.SAVED}
    assert read_record(job.run).run_id == RUN_ID


def test_two_machines_are_driven_from_the_head(cluster: RayCluster, tmp_path: Path) -> None:
    job = Job(cluster, tmp_path, "two", "resources.nodes=2")
    job.submit({str(rank): ["finish"] for rank in range(4)})
    job.until_over()
    status = read_status(job.ask("status"))
    assert status.verdict == "finished", job.ask("logs")
    assert read_json(job.run.attempt(1).ended)["codes"] == dict.fromkeys("0123", 0)
    assert read_json(job.run.attempt(1).agent)["host"] == "login"
