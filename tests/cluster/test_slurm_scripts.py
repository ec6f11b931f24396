"""The other files of slurm/: they run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import REPOSITORY, slurm_cluster

pytestmark = pytest.mark.cluster

_FOLDER = REPOSITORY / "slurm"


def test_the_all_reduce_test_measures_across_nodes(tmp_path: Path) -> None:
    with slurm_cluster(tmp_path / "cluster", nodes=2, lab=True) as cluster:
        asked = ["--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path / 'out'}"]
        script = str(_FOLDER / "allreduce.sbatch")
        cluster.run(["sbatch", *asked, script, sys.executable], timeout=350)
    said = (tmp_path / "out").read_text()
    assert "2 ranks on 2 nodes, cpu" in said
    rows = [line.split() for line in said.splitlines() if line.endswith("GB/s")]
    assert {row[0] for row in rows} == {"world", "across"}
    assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.parametrize("path", sorted(_FOLDER.glob("*.s*")), ids=lambda p: p.name)
def test_a_script_is_a_shell_script(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_an_interactive_shell_needs_slurm() -> None:
    done = subprocess.run(
        ["/bin/bash", _FOLDER / "interactive.sh", "-p", "debug"],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "srun not found on PATH" in done.stderr
