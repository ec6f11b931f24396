"""`longhaul train launch=ray_up` with Ray's own cluster launcher, against moto's EC2."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from launch.run.run_folder import attempts
from tests.helpers.agent_process import wait_for
from tests.helpers.data import tiny_text_corpus
from tests.helpers.nodes import skip
from tests.helpers.rented import HEAD, KEY_PAIR, WORKER, Cloud, rented
from tests.helpers.tiny_run import TINY
from trainer.records.json_file import read_json
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

_PATIENCE_S = 900.0  # for what takes a minute where nothing else runs
_STEPS = 6
_TOO_SLOW = "The current node timed out during startup"  # `ray start` gives itself 30 s


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    try:
        metadata.version("ray")
    except metadata.PackageNotFoundError:
        skip("Ray is not installed")
    # One for the head, one for the ranks; others where a busy machine is too slow for Ray.
    with rented(tmp_path_factory.mktemp("rented"), 4) as made:
        yield made


def _train(cloud: Cloud, folder: Path) -> list[str]:
    corpus = tiny_text_corpus(folder / "corpus", documents=60)
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    settings = {
        "data.sources.files.paths": [str(corpus)],
        "data.store_root": str(folder / "stores"),
        "run.root": str(folder / "here"),
        "launch.region": "us-east-1",
        "launch.zone": "us-east-1a",
        "launch.image": cloud.image,
        "launch.head_type": HEAD,
        "launch.worker_type": WORKER,
        "launch.key_name": KEY_PAIR,
        "launch.identity_file": str(cloud.lab.identity),
        "launch.ssh_user": "root",
        "launch.python": str(cloud.python),
        "launch.package": f"longhaul=={metadata.version('longhaul')}",
        "launch.ray_version": metadata.version("ray"),
        "launch.token_file": str(token),
        "launch.run_root": str(folder / "there"),
    }
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    kind = ["launch=ray_up", "launch.keeps_run_root=true", "run.name=up"]
    ranks = ["resources.device=cpu", "resources.ranks_per_node=2", f"steps.total={_STEPS}"]
    return ["train", *TINY, *kind, *ranks, *words]


def _type(cloud: Cloud, *words: str, check: bool = True) -> str:
    argv = [sys.executable, "-m", "launch", *words]
    env = cloud.environment()
    return cloud.lab.login.run(argv, env=env, timeout=_PATIENCE_S, check=check)


def test_a_head_is_set_up_rents_a_spot_machine_for_the_job_and_both_are_given_back(
    cloud: Cloud, tmp_path: Path
) -> None:
    here, there = RunFiles(tmp_path / "here/up"), RunFiles(tmp_path / "there/up")
    said = _type(cloud, *_train(cloud, tmp_path), check=False)
    if _TOO_SLOW in said:
        said = _type(cloud, "resume", str(here.root))
    assert "is on its way; the head stays until: ray down " in said, said[-3000:]
    wait_for(there.attempt(1).ended.exists, seconds=_PATIENCE_S)
    assert read_metrics(there.metrics)[-1]["step"] == _STEPS
    kinds = {one["InstanceType"]: one["InstanceLifecycle"] for one in cloud.instances.values()}
    assert kinds == {HEAD: None, WORKER: "spot"}
    workers = [i for i, one in cloud.instances.items() if one["InstanceType"] == WORKER]
    assert read_json(there.attempt(1).agent)["host"] in [cloud.where[one] for one in workers]
    wait_for(lambda: "finished" in _type(cloud, "status", str(here.root)), seconds=_PATIENCE_S)
    file = attempts(here)[-1].root / "submission/cluster.yaml"
    cloud.lab.login.run(
        [cloud.tools / "ray", "down", "--yes", file], env=cloud.environment(), timeout=_PATIENCE_S
    )
    wait_for(lambda: {one["state"] for one in cloud.instances.values()} == {"terminated"})
    assert "finished" in _type(cloud, "status", str(here.root))
