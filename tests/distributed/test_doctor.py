"""`longhaul doctor` with real ranks: well on a well machine, and right about what is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launch.commands.doctor import main
from tests.helpers.ranks import RankPool
from tests.helpers.throttled import throttled
from trainer.dist import probes
from trainer.dist.world import World
from trainer.doctor.compute import measure_compute
from trainer.doctor.network import Nodes, measure_network, measure_pairs
from trainer.doctor.visible import measure_visible
from trainer.errors import Exit, Refused

SECRET = "k-0a1b2c3d4e5f-very-secret"
# A key that only the ranks have: whoever starts them cannot know it.
_KEY_OF_A_NODE = """
import os
if "RANK" in os.environ:
    os.environ["NODE_TOKEN"] = "of-this-node-alone"
    os.environ["NCCL_TOPO_FILE"] = "/of-this-node-alone"
"""
# What a file of this name on the path does to every interpreter that starts: rank 1 sees another
# version of a package, and is stopped for most of the time.
_PLANT = """
import os, sys
if os.environ.get("RANK") == "1":
    sys.path.insert(0, os.environ["PLANTED"])
    import subprocess
    words = [sys.executable, "-S", "-c", os.environ["THROTTLE"], str(os.getpid())]
    subprocess.Popen(words, env={})
"""


def doctor(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launch", "doctor", *arguments]
    return subprocess.run(
        argv, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
    )


def of(said: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for one in said["findings"] if one["name"] == name]


def test_two_ranks_measure_together_and_leave_nothing_behind(tmp_path: Path) -> None:
    work, site = tmp_path / "work", tmp_path / "site"
    work.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(_KEY_OF_A_NODE)
    env = {"WANDB_API_KEY": SECRET, "NCCL_DEBUG_FILE": f"/tmp/{SECRET}", "PYTHONPATH": str(site)}
    done = doctor("--json", "--pairs", cwd=work, **env)
    assert done.returncode in (Exit.DONE, Exit.STOP), done.stderr
    said = json.loads(done.stdout)
    # Another program may slow a rank down on this machine; nothing else can be wrong.
    wrong = {one["name"] for one in said["findings"] if one["verdict"] == "problem"}
    assert wrong <= {"compute"}, done.stdout
    names = {one["name"] for one in said["findings"]}
    assert {"versions", "rendezvous", "compute", "shared folder", "all-reduce", "pairs"} <= names
    ranks = said["measured"]["ranks"]
    assert [one["rank"] for one in ranks] == [0, 1]
    assert all(one["compute"]["products_per_s"] > 0 for one in ranks)
    assert ranks[1]["visible"]["content_s"] is not None
    (named,) = of(said, "credentials")
    assert named["value"] == "NODE_TOKEN, WANDB_API_KEY"
    assert ranks[0]["machine"]["network"]["settings"] == {
        "NCCL_DEBUG_FILE": "/tmp/[redacted]",
        "NCCL_TOPO_FILE": "/[redacted]",
        **{name: value for name, value in os.environ.items() if name == "HF_HUB_OFFLINE"},
        "WANDB_MODE": os.environ["WANDB_MODE"],
    }
    assert SECRET not in done.stdout + done.stderr
    assert not any(work.iterdir()), "the job's folder is gone, and what was made for it"


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    """A slow rank, another version on it, a stale lock, a key in a setting of the network."""
    work, planted, ops = (tmp_path / name for name in ("work", "planted", "ops"))
    info = planted / "longhaul_planted-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: longhaul-planted\nVersion: 9.9\n")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_PLANT)
    lock = ops / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    work.mkdir()
    done = doctor(
        cwd=work,
        PYTHONPATH=str(site),
        PLANTED=str(planted),
        THROTTLE=throttled(stopped_s=0.3, running_s=0.01, once=f"{work}/runs/**/started.json"),
        TORCH_EXTENSIONS_DIR=str(ops),
        HF_TOKEN=SECRET,
    )
    assert done.returncode == Exit.STOP, done.stdout + done.stderr
    assert "PROBLEM: versions: longhaul-planted is" in done.stdout
    assert "9.9 on rank 1" in done.stdout
    assert f"PROBLEM: build lock on {os.uname().nodename}: {lock}" in done.stdout
    assert "PROBLEM: compute" in done.stdout
    assert "rank 1 computes" in done.stdout
    assert SECRET not in done.stdout + done.stderr


def test_a_rank_that_dies_is_named_and_the_logs_stay(tmp_path: Path) -> None:
    """And what the node said of itself before is judged all the same."""
    site = tmp_path / "site"
    site.mkdir()
    killed = 'import os\nif os.environ.get("RANK") == "1": os.kill(os.getpid(), 9)\n'
    (site / "sitecustomize.py").write_text(killed)
    done = doctor("--json", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == Exit.STOP, done.stderr
    said = json.loads(done.stdout)
    (job,) = of(said, "job")
    assert job["verdict"] == "problem"
    assert job["value"].startswith(f"rank 1 on {os.uname().nodename}: Killed")
    log = Path(job["value"].rpartition("its log: ")[2])
    assert log.name == "rank-00001.log"
    assert log.exists()
    assert said["measured"] is None
    assert of(said, "shared memory")


def test_a_small_dev_shm_is_said(tmp_path: Path) -> None:
    """In a mount namespace of its own: the machine keeps its /dev/shm."""
    small = "mount -t tmpfs -o size=32m tmpfs /dev/shm"
    tried = subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    command = f'{small} && exec "{sys.executable}" -m launch doctor --here'
    argv = ["unshare", "-m", "sh", "-c", command]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == Exit.STOP, done.stderr
    assert "PROBLEM: shared memory" in done.stdout
    assert "32.0 MiB of 32.0 MiB free at /dev/shm" in done.stdout
    assert "--shm-size=2g" in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--expect", "-3"], "give the GB/s of a link"),
        (["--here", "--pairs"], "--here looks at this machine alone"),
        (["nobody"], "there is no run 'nobody'"),
    ],
)
def test_what_cannot_be_examined_is_refused(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=message):
        main(argv)


# --- the measurements themselves -------------------------------------------------------------


def _measured(world: World, folder: str) -> dict[str, Any]:
    """As if rank 0 were alone on its node."""
    me = world.place.rank
    nodes = Nodes.of(world, "first" if me == 0 else "second")
    beats: list[int] = []

    def beat() -> None:
        beats.append(1)

    return {
        "leaders": nodes.leaders,
        "mine": nodes.ranks_with(me),
        "network": measure_network(world, nodes, timeout_s=60.0, megabytes=(1,), beat=beat),
        "pairs": measure_pairs(world, range(3), beat=beat),
        "visible": measure_visible(world, Path(folder), looks=nodes.looks(me)),
        "compute": measure_compute(world),
        "beats": len(beats),
    }


def _disturbed(world: World, folder: str) -> dict[str, Any]:
    """Rank 1's clock is ahead and its folder comes late; rank 2 has another folder."""
    me = world.place.rank
    clock = (lambda: time.time() + 5.0) if me == 1 else time.time
    clocks = probes.clock_offsets([0, 1, 2], rank=me, clock=clock)
    mine = Path(folder) / f"of-{me}"
    if me != 1:
        mine.mkdir()
    world.max([0.0])
    if me == 1:
        threading.Timer(0.4, mine.symlink_to, (mine.with_name("of-0"),)).start()
    visible = measure_visible(world, mine, looks=True, patience_s=4.0)
    return {"clocks": clocks, "visible": visible}


def test_a_clock_and_folders_that_are_off_show(ranks: RankPool, tmp_path: Path) -> None:
    first, second, third = ranks.run(3, _disturbed, str(tmp_path))
    ahead, right = (one["offset_s"] for one in first["clocks"])
    assert abs(ahead - 5.0) < 0.5
    assert abs(right) < 0.5
    assert 0.3 < second["visible"]["name_s"] < 4.0
    assert third["visible"] == {"name_s": None, "content_s": None}


def test_three_ranks_on_two_nodes_measure_within_and_across(
    ranks: RankPool, tmp_path: Path
) -> None:
    first, second, third = ranks.run(3, _measured, str(tmp_path))
    assert first["leaders"] == (0, 1)
    assert (first["mine"], third["mine"]) == ([0], [1, 2])
    assert [row["ranks"] for row in first["network"]["across"]] == [2, 2]
    assert first["network"]["within"] == []  # alone there
    assert [row["ranks"] for row in third["network"]["within"]] == [2, 2]
    assert third["network"]["across"] == []
    assert [row["ranks"] for row in first["network"]["world"]] == [3, 3]
    met = [tuple(p["ranks"]) for one in (first, second, third) for p in one["pairs"]]
    assert sorted(met) == [(0, 1), (0, 2), (1, 2)]
    assert second["visible"]["name_s"] is not None
    assert third["visible"]["name_s"] is None  # its node's first rank looks
    assert first["beats"] == second["beats"] == third["beats"], "one is judged by what it lacks"
