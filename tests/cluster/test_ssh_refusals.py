"""What is wrong with hosts is said before anything is written, all of it at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.nodes import Lab, allowed, machines
from tests.helpers.ssh_runs import SshRun
from trainer.errors import Exit

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """node1 is well; each of the others is not, in its own way."""
    with machines(tmp_path_factory.mktemp("lab"), 7) as made:
        yield made


def refused(one: SshRun, *words: str) -> str:
    done = one.type("train", *one.words(*words))
    assert done.returncode == Exit.REFUSED, done.stdout
    assert not one.run.root.exists()
    return done.stdout


def test_every_problem_of_every_host_in_one_table(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "table", nodes=7, behaviours={})
    for folder in ("runs", "stores"):
        (tmp_path / folder).mkdir()
    _spoil(lab, tmp_path)
    begun = time.monotonic()
    small = ("resources.ranks_per_node=1", "batch.micro_batch_size=1", "batch.global_batch_size=14")
    said = refused(one, "launch.connect_timeout_s=15", *small)
    assert time.monotonic() - begun < allowed(180.0)
    for words in (
        "7 hosts are needed and 1 can take part; nothing was written",
        "node2  it cannot be reached",
        "try: ssh node2 true",
        "node3  its host key is not known, so nobody can say which machine answers",
        "try: ssh-keyscan node3 >> ~/.ssh/known_hosts, and compare fingerprints",
        "node4  its host key is not the one that is known: another machine answers there",
        "node5  torch 1.0, but",
        f"node6  its {tmp_path / 'runs'} is another folder than here",
        "node7  it lets nobody in with this user and key",
    ):
        assert words in said, said
    assert "node1" not in said


def _spoil(lab: Lab, shared: Path) -> None:
    import torch

    lab.node("node2").cut()
    known = lab.known_hosts.read_text().splitlines(keepends=True)
    kinds = {line.partition(",")[0]: line for line in known}
    kinds["node4"] = kinds["node4"].partition(" ")[0] + " " + kinds["node1"].partition(" ")[2]
    del kinds["node3"]
    lab.known_hosts.write_text("".join(kinds.values()))
    installed = next(Path(torch.__file__).parents[1].glob("torch-*.dist-info")) / "METADATA"
    other = lab.folder / "METADATA"
    other.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    lab.node("node5").run(["mount", "--bind", other, installed])
    lab.node("node6").run(["mount", "-t", "tmpfs", "none", shared / "runs"])
    (lab.folder / "empty").touch()
    lab.node("node7").run(["mount", "--bind", lab.folder / "empty", lab.folder / "authorized_keys"])


def test_a_host_that_is_left_out_is_named(lab: Lab, tmp_path: Path) -> None:
    """Enough others are well: one line says which is not used, and the run begins."""
    behaviours = {str(rank): ["finish"] for rank in range(2)}
    one = SshRun(lab, tmp_path, "left", behaviours=behaviours)
    said = one.train("launch.hosts=[node1,nowhere]", "resources.nodes=1")
    assert "warning: nowhere is left out: no machine of that name is known" in said
    one.until_over()
    assert one.attempts()[0]["exit_code"] == Exit.DONE


def test_too_few_devices(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "devices", nodes=1, behaviours={})
    said = refused(one, "resources.device=cuda", "precision=fp32")
    assert "node1  2 ranks a node, but it has 0 CUDA devices" in said
    assert "try: resources.device=cpu" in said


def test_a_port_that_is_taken_and_more_machines_than_hosts(lab: Lab, tmp_path: Path) -> None:
    one = SshRun(lab, tmp_path, "port", nodes=1, behaviours={})
    said = refused(one, "resources.rendezvous_port=22")
    assert "node1  port 22 cannot be used (Address already in use)" in said
    assert "try: resources.rendezvous_port=0" in said
    said = refused(one, "resources.nodes=2", "batch.micro_batch_size=1")
    assert "resources.nodes: 2 machines, but 1 hosts are named" in said
