"""Two machines of one SkyPilot job, as far as they can be had here: a rank, addresses, ssh from one
to the other through a real sshd, a folder that both see; ranks without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cloud.carried import VARIABLE, carried_by, carried_text
from launch.run.run_folder import attempts, read_record
from tests.helpers.agent_process import wait_for
from tests.helpers.cloud import RUN_ID, SKY, plan_for
from tests.helpers.configs import config
from tests.helpers.fake_ranks import blank_store
from tests.helpers.nodes import Lab, Machine, environment, machines
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with machines(tmp_path_factory.mktemp("lab"), 2) as made:
        ssh = made.folder / "home" / ".ssh"
        ssh.mkdir(mode=0o700)
        (ssh / "config").write_text(f"Host *\n  IdentityFile {made.identity}\n")
        (ssh / "config").chmod(0o600)
        yield made


class Job:
    """One submission and the environment that SkyPilot gives its machines."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        (folder / "corpus.txt").write_text("some text\n")
        wanted = config(
            *SKY,
            "data=text_files",
            f"data.sources.files.paths=[{folder}/corpus.txt]",
            f"data.store_root={folder}/stores",
            "checkpoint.remote.url=null",
            f"launch.run_root={folder}/runs",
            "launch.keeps_run_root=true",
            "launch.environment=[FAKE_BEHAVIOUR,PYTHONPATH]",
            "launch.gpu=null",
            "resources.device=cpu",
            "resources.nodes=2",
            "resources.ranks_per_node=1",
        )
        blank_store(wanted)
        self.sent = carried_text(carried_by(plan_for(wanted)))
        self.run = RunFiles(folder / "runs" / "first-run")

    def begin(self, machine: Machine, behaviour: dict[str, Any]) -> subprocess.Popen[Any]:
        more = {
            VARIABLE: self.sent,
            "HOME": str(self.lab.folder / "home"),
            "SKYPILOT_NODE_RANK": str(self.lab.nodes.index(machine)),
            "SKYPILOT_NODE_IPS": "\n".join(node.address for node in self.lab.nodes),
            "SKYPILOT_NUM_NODES": str(len(self.lab.nodes)),
            "FAKE_BEHAVIOUR": json.dumps(behaviour),
        }
        return machine.popen(
            [sys.executable, "-m", "tests.helpers.fake_cloud_node"],
            env=environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _end(process: subprocess.Popen[Any]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def test_the_first_machine_drives_both_and_the_second_leaves_at_once(
    lab: Lab, tmp_path: Path
) -> None:
    job = Job(lab, tmp_path)
    finish = {"0": ["finish"], "1": ["finish"]}
    code, said = _end(job.begin(lab.nodes[1], finish))
    assert code == 0, said
    assert "the first machine starts the ranks of this one" in said
    code, said = _end(job.begin(lab.nodes[0], finish))
    assert code == 0, said
    assert read_record(job.run).run_id == RUN_ID
    assert read_json(job.run.attempt(1).ended)["codes"] == {"0": 0, "1": 0}


def test_machines_that_were_taken_back_go_on_where_the_run_was(lab: Lab, tmp_path: Path) -> None:
    """SkyPilot gives the job new machines, of the same addresses here, and the same command."""
    job = Job(lab, tmp_path)
    first = job.begin(lab.nodes[0], {"0": ["wait"], "1": ["wait"]})
    root = job.run.attempt(1).root
    wait_for(lambda: (root / "up-0").exists() and (root / "up-1").exists(), seconds=400)
    for machine in lab.nodes:
        machine.kill()
    first.communicate(timeout=300)
    for machine in lab.nodes:
        machine.boot()
    code, said = _end(job.begin(lab.nodes[0], {"0": ["finish"], "1": ["finish"]}))
    assert code == 0, said
    assert len(attempts(job.run)) == 2
    assert read_record(job.run).run_id == RUN_ID
