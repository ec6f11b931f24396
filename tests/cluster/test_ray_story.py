"""One run through everything that a Ray cluster does, with real ranks, against one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.nodes import REPOSITORY, allowed, environment
from tests.helpers.ray_cluster import RayCluster, RayRun, ray_cluster
from trainer.errors import Exit
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.records.json_file import read_json, read_lines
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

_STEPS, _NODE_LOST_S = 300, 180.0
_SETTINGS = (
    "engine=zero2",
    "precision=fp32",
    "resources.ranks_per_node=1",
    f"steps.total={_STEPS}",
    "steps.save_every=5",
    "drills.enabled=true",
)
_SLOWLY = as_text([Fault("step.begin", "sleep", value=0.3, times=0)])
_OTHER_ORDER = 1e-6  # one rank adds gradients up in another order than two


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2) as made:
        yield made


def test_a_run_survives_its_cluster(cluster: RayCluster, tmp_path: Path) -> None:
    more = {"TORCH_EXTENSIONS_DIR": os.environ["TORCH_EXTENSIONS_DIR"], ENVIRONMENT: _SLOWLY}
    one = RayRun(cluster.lab, tmp_path, "story", env=more, passed=(ENVIRONMENT,), cluster=cluster)
    one.train(*_SETTINGS, "resources.min_nodes=1", "launch.silent_s=12")

    _until_step(one, attempt=1, step=7)
    os.kill(_worker(one), signal.SIGKILL)  # a rank: both start again

    _until_step(one, attempt=2, step=17)
    begun = time.monotonic()
    cluster.lab.node("node2").power_off()  # a node: on with the other one alone
    _until_step(one, attempt=3, step=1)
    assert time.monotonic() - begun < allowed(_NODE_LOST_S)

    cluster.join(cluster.lab.node("node2").boot(sshd=False))  # it is back: both, once it is saved
    last = _until_step(one, attempt=4, step=1)
    _until_step(one, attempt=4, step=last + 6)
    one.kill_driver()  # nobody carries it: agents save and stop
    one.until_over()
    one.env = {name: value for name, value in one.env.items() if name != ENVIRONMENT}
    one.resume()
    one.until_over(seconds=400)

    attempts = one.attempts()
    causes = ["crash", "node", "preempt", "preempt", None]
    assert [line["cause"] for line in attempts] == causes
    assert [line["world_size"] for line in attempts] == [2, 2, 1, 2, 2]
    assert attempts[-1]["exit_code"] == Exit.DONE
    assert [x["from_step"] for x in attempts][1:] == [x["checkpoint_step"] for x in attempts][:-1]
    _same_run(one, _undisturbed(one))


def _worker(one: RayRun) -> int:
    """A rank's pid as seen from here."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"trainer.worker" in command and os.fsencode(one.run.root) + b"\0" in command:
            return int(folder.name)
    raise AssertionError("no rank runs")


def _until_step(one: RayRun, *, attempt: int, step: int) -> int:
    """The last step when the attempt has made one at or after `step`."""
    started = one.run.attempt(attempt).started
    wait_for(lambda: started.exists() or not one.processes(), seconds=400)
    assert started.exists(), one.log()[-3000:]
    first = int(read_json(started)["step"])
    last = 0

    def reached() -> bool:
        nonlocal last
        lines = [x for x in read_lines(one.run.metrics) if x.get("kind") == "step"]
        last = lines[-1]["step"] if lines else 0
        return last >= max(step, first + 1)

    wait_for(reached, seconds=400)
    return last


def _undisturbed(one: RayRun) -> RunFiles:
    """The same run on this machine, in one go."""
    words = [w for w in one.words(*_SETTINGS) if not w.startswith(("launch", "resources", "run."))]
    words += ["launch.grace_s=20", "resources.ranks_per_node=2", "resources.device=cpu"]
    words += [f"run.root={one.folder / 'alone'}", "run.name=story", "watch.enabled=false"]
    words += ["resources.collective_timeout_s=200"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", *words],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return RunFiles(one.folder / "alone/story")


def _same_run(one: RayRun, alone: RunFiles) -> None:
    """To the bit until the world was another one, then as near as another order lets it."""
    ours, theirs = ([x["loss"] for x in read_metrics(run.metrics)] for run in (one.run, alone))
    assert len(ours) == len(theirs) == _STEPS
    same = one.attempts()[1]["checkpoint_step"]
    assert same >= 10
    assert ours[:same] == theirs[:same]
    furthest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"furthest apart {furthest:.2g}, at the end {abs(ours[-1] - theirs[-1]):.2g}")
    assert furthest < _OTHER_ORDER
