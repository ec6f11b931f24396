"""Runs on a real Ray cluster: a head and two nodes, real agents, ranks without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.nodes import TIMED, allowed
from tests.helpers.ray_cluster import RayCluster, RayRun, ray_cluster
from trainer.errors import Exit
from trainer.records.attempt import read_error, read_stop
from trainer.records.json_file import read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

FINISH = {str(rank): ["finish"] for rank in range(4)}
WAIT = {str(rank): ["wait"] for rank in range(4)}
SECRET = "longhaul-sentinel-never-to-be-written"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2, dashboard=True) as made:
        yield made


@pytest.fixture(autouse=True)
def _switched_on(cluster: RayCluster) -> Iterator[None]:
    yield
    off = [node for node in cluster.lab.nodes if not node.pid]
    for node in off:
        cluster.join(node.boot(sshd=False))
    if off:
        cluster.until(2)


def made(
    cluster: RayCluster, folder: Path, name: str, behaviours: Mapping[str, Sequence[str]]
) -> RayRun:
    return RayRun(cluster.lab, folder, name, behaviours=behaviours, cluster=cluster)


def finishing(attempt: int) -> dict[str, list[str]]:
    return {f"{attempt}:{rank}": ["finish"] for rank in range(4)}


def save(run: RayRun, step: int) -> None:
    folder = run.run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_a_run_on_two_nodes(cluster: RayCluster, tmp_path: Path) -> None:
    one = RayRun(
        cluster.lab,
        tmp_path,
        "one",
        behaviours=FINISH,
        env={"WANDB_API_KEY": SECRET},
        passed=("WANDB_*",),
        cluster=cluster,
    )
    said = one.train()
    assert f"one: attempt 1 begins on the Ray cluster at {cluster.address}" in said
    one.until_over()
    assert read_json(one.run.attempt(1).ended)["codes"] == dict.fromkeys("0123", 0), one.log()
    assert "finished" in one.type("status", str(one.run.root)).stdout
    ours = [path for path in one.folder.rglob("*") if path.is_file()]
    hidden = (SECRET.encode(), cluster.token.encode())
    assert not [p for p in ours for secret in hidden if secret in p.read_bytes()]


def test_a_rank_killed_on_the_second_node(cluster: RayCluster, tmp_path: Path) -> None:
    one = made(cluster, tmp_path, "killed", WAIT | finishing(2))
    one.train()
    one.up(1, 4)
    pid = one.pid(2, node=1)
    for node in cluster.lab.nodes:  # which one is second is Ray's business; each counts its own
        node.sh(f"! grep -qsz '^RANK=2$' /proc/{pid}/environ || kill -9 {pid}")
    one.until_over()
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.kind) == (2, "Killed")
    assert [line["cause"] for line in one.attempts()] == ["crash", None]


def test_memory_is_given_back_on_all_nodes_when_the_run_gives_up(
    cluster: RayCluster, tmp_path: Path
) -> None:
    one = made(cluster, tmp_path, "freed", WAIT)
    one.train("checkpoint.peer.every=1")
    one.up(1, 4)
    one.has_no_way_on()
    memory, pid = one.put_states_in_memory(), one.pid(2, node=1)
    for node in cluster.lab.nodes:  # which one is second is Ray's business; each counts its own
        node.sh(f"! grep -qsz '^RANK=2$' /proc/{pid}/environ || kill -9 {pid}")
    one.until_over()
    assert [line["action"] for line in one.attempts()] == ["give_up"]
    for node in cluster.lab.nodes:
        node.sh(f"! test -e {memory}")


def test_a_driver_killed_leaves_a_saved_run_that_goes_on(
    cluster: RayCluster, tmp_path: Path
) -> None:
    """Ray ends the driver's actors at once; agents are none of Ray's children, and save first."""
    one = made(cluster, tmp_path, "driverless", WAIT | finishing(2))
    one.train()
    one.up(1, 4)
    one.kill_driver()
    one.until_over()
    for node in (0, 1):
        codes = read_json(one.run.attempt(1).root / f"ended-{node}.json")["codes"]
        assert set(codes.values()) == {Exit.SAVED}
    one.resume()
    one.until_over()
    first, second = one.attempts()
    assert first["why"] == "stopped (interrupt) and saved at step 5"
    assert second["exit_code"] == Exit.DONE


def test_longhaul_stop_saves_and_the_run_stays_stopped(cluster: RayCluster, tmp_path: Path) -> None:
    one = made(cluster, tmp_path, "stopped", WAIT | finishing(2))
    one.train()
    one.up(1, 4)
    assert "running" in one.type("status", str(one.run.root)).stdout
    assert one.type("stop", str(one.run.root)).returncode == 0
    one.until_over()
    assert "stopped" in one.type("status", str(one.run.root)).stdout
    assert [line["action"] for line in one.attempts()] == ["give_up"]


def test_the_driver_may_be_a_job_of_the_head(cluster: RayCluster, tmp_path: Path) -> None:
    one = made(cluster, tmp_path, "job", WAIT | {f"2:{rank}": ["wait"] for rank in range(4)})
    one.env = {"WANDB_API_KEY": SECRET}
    one.passed = ("WANDB_*",)
    said = one.train("launch.submit=job", f"launch.dashboard={cluster.dashboard}")
    assert "attempt 1 is job longhaul-" in said
    assert "not handed to the job: WANDB_API_KEY" in said
    one.up(1, 4)
    assert "running" in one.type("status", str(one.run.root)).stdout
    again = one.type("resume", str(one.run.root))
    assert (again.returncode, "is running already" in again.stdout) == (Exit.REFUSED, True)
    assert one.type("stop", str(one.run.root)).returncode == 0
    one.until_over()
    wait_for(lambda: "stopped" in one.type("status", str(one.run.root)).stdout, seconds=400)
    ours = [path for path in one.folder.rglob("*") if path.is_file()]
    hidden = (SECRET.encode(), cluster.token.encode())
    assert not [p for p in ours for secret in hidden if secret in p.read_bytes()]


def test_a_node_that_is_drained_is_left_in_time(cluster: RayCluster, tmp_path: Path) -> None:
    one = made(cluster, tmp_path, "drained", WAIT | finishing(2))
    one.train("resources.min_nodes=1")
    one.up(1, 4)
    node = cluster.lab.node("node2")
    cluster.drain(node, seconds=600)  # long after the run has left it
    one.until_over()
    node.kill()
    stop = read_stop(one.run.attempt(1).stop)
    assert stop is not None
    assert stop.cause == "drain"
    assert set(read_json(one.run.attempt(1).ended)["codes"].values()) == {Exit.SAVED}
    assert [line["cause"] for line in one.attempts()] == ["preempt", None]
    assert [line["world_size"] for line in one.attempts()] == [4, 2]
    cluster.join(node.boot(sshd=False))
    another = made(cluster, tmp_path, "later", FINISH)
    another.train("launch.wait_nodes_s=300")  # the node is still to come
    another.until_over()
    assert [line["world_size"] for line in another.attempts()] == [4]


def test_a_node_switched_off_is_gone_on_without_and_taken_back(
    cluster: RayCluster, tmp_path: Path
) -> None:
    one = made(cluster, tmp_path, "off", WAIT | finishing(3))
    one.train("resources.min_nodes=1", "launch.silent_s=12")
    one.up(1, 4)
    begun = time.monotonic()
    cluster.lab.node("node1").power_off()  # silently: no connection is closed
    one.up(2, 2)
    assert time.monotonic() - begun < allowed(180.0)
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert error.kind == "NodeLost"
    assert "was lost with node node1" in error.message
    cluster.lab.node("node1").boot(sshd=False)
    cluster.join(cluster.lab.node("node1"))
    cluster.until(2)
    save(one, 3)
    one.until_over()
    stop = read_stop(one.run.attempt(2).stop)
    assert stop is not None
    assert (stop.cause, stop.detail[:5]) == ("resize", "node1")
    assert [line["cause"] for line in one.attempts()] == ["node", "preempt", None]
    assert [line["world_size"] for line in one.attempts()] == [4, 2, 4]


# --- longhaul doctor ------------------------------------------------------------------------------


def look(cluster: RayCluster, root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`longhaul doctor` over the cluster, which has no GPU: what `auto` means is its business."""
    argv = [sys.executable, "-m", "launch", "doctor", "launch=ray", f"run.root={root}"]
    argv += [f"launch.address={cluster.address}", "resources.ranks_per_node=1"]
    argv += ["launch.environment=[PYTHONPATH,OMP_NUM_THREADS]", "resources.device=auto", *words]
    return subprocess.run(
        cluster.lab.login.words(argv),
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_doctor_names_the_unfit_node(cluster: RayCluster, tmp_path: Path) -> None:
    small = cluster.lab.node("node2")
    small.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"])
    try:
        done = look(cluster, tmp_path / "runs", "resources.nodes=2", "--json")
    finally:
        small.run(["umount", "/dev/shm"])
    assert done.returncode == Exit.STOP, done.stderr
    said = json.loads(done.stdout)
    assert [one["node"] for one in said["measured"]["ranks"]] in (
        ["node1", "node2"],
        ["node2", "node1"],
    )
    wrong = {(one["name"], one["node"]) for one in said["findings"] if one["verdict"] == "problem"}
    assert [node for name, node in wrong if name == "shared memory"] == ["node2"]
    assert {name for name, _ in wrong} <= {"shared memory", *TIMED}, wrong
    assert not (tmp_path / "runs").exists(), "the job is over, and its folder is gone"


def test_doctor_goes_as_a_job_of_the_head_as_often_as_one_likes(
    cluster: RayCluster, tmp_path: Path
) -> None:
    """Ray takes each name of a job once in the life of a cluster."""
    words = ["launch.submit=job", f"launch.dashboard={cluster.dashboard}", "resources.nodes=1"]
    done = look(cluster, tmp_path / "runs", *words, "--json")
    assert done.returncode in (Exit.DONE, Exit.STOP), done.stderr
    assert re.search(r"attempt 1 is job longhaul-[0-9a-f]{16}-0001 of", done.stderr), done.stderr
    said = json.loads(done.stdout)
    assert len(said["measured"]["ranks"]) == 1
    assert {x["name"] for x in said["findings"] if x["verdict"] == "problem"} <= TIMED, said
    assert not (tmp_path / "runs").exists()


# --- said before anything is written --------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "env", "words"),
    [
        ([], {"RAY_AUTH_TOKEN": "0" * 64}, "does not take the token"),
        ([], {"RAY_AUTH_TOKEN": ""}, "launch.auth=token, but there is no token"),
        (["launch.auth=disabled"], {}, "wants a token"),
        (["launch.address='10.77.0.1:1'"], {}, "no Ray cluster answers there (connection refused)"),
        (
            ["resources.nodes=3", "batch.micro_batch_size=1"],
            {},
            "3 nodes with 2 CPU, 2 slot are needed, and 2 are there",
        ),
        (["launch.python=/nowhere/python"], {}, "/nowhere/python: [Errno 2]"),
        (["launch.token_file=/nowhere"], {}, "launch.token_file: there is no file /nowhere"),
    ],
)
def test_what_the_cluster_cannot_do_is_said_at_once(
    cluster: RayCluster, tmp_path: Path, overrides: list[str], env: dict[str, str], words: str
) -> None:
    one = made(cluster, tmp_path, "refused", FINISH)
    one.env = env
    begun = time.monotonic()
    done = one.type("train", *one.words(*overrides))
    assert done.returncode == Exit.REFUSED, done.stdout
    assert words in done.stdout
    assert "try:" in done.stdout or "nowhere" in done.stdout
    assert not one.run.root.exists()
    assert time.monotonic() - begun < allowed(180.0)


def test_a_folder_that_nodes_do_not_share_is_found(cluster: RayCluster, tmp_path: Path) -> None:
    one = made(cluster, tmp_path, "apart", FINISH)
    (one.folder / "runs").mkdir()
    node = cluster.lab.node("node2")
    node.sh(f"mount -t tmpfs none {one.folder}/runs")
    done = one.type("train", *one.words())
    node.sh(f"umount {one.folder}/runs")
    assert done.returncode == Exit.REFUSED, done.stdout
    assert "is another folder than here (a file of ours is not seen there)" in done.stdout
    assert "node2-" in done.stdout
    assert "node1-" not in done.stdout
    assert not one.run.root.exists()
