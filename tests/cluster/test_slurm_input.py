"""What a real Slurm is given: values that could be taken for something else, and jobs it could
never run, which are refused before anything is queued."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.slurm.script import directive
from tests.helpers.configs import config
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import slurm_run
from trainer.config.slurm_rules import slurm_problems
from trainer.errors import Refused

pytestmark = pytest.mark.cluster

HOSTILE = [
    "plain",
    "two words",
    "  spaces around  ",
    "$(touch INJECTED)",
    "`touch INJECTED`",
    "${HOME}",
    "$HOME",
    "~root",
    "; touch INJECTED",
    "&& touch INJECTED",
    "| touch INJECTED",
    "> INJECTED",
    "it's",
    '"quoted"',
    "''",
    "'; touch INJECTED; '",
    '"; touch INJECTED; "',
    "back\\slash",
    "trailing\\",
    "\\\\server\\share",
    '\\"',
    "#SBATCH --account=other",
    "# a comment",
    "a#b",
    "-x",
    "--account=other",
    "--",
    "-",
    "*",
    "?",
    "[a-z]",
    "{a,b}",
    "!!",
    "^caret^",
    "100%",
    "%j-%x-%u",
    "a=b,c=d",
    "@RUN@",
    "name@ATTEMPT@",
    "\u00fcber \u65e5\u672c",
    "line\nbreak",
    "line\n#SBATCH --account=other",
    "carriage\rreturn",
    "tab\there",
    "bell\x07",
    "null\x00byte",
    "escape\x1b[31m",
    "\u2028separator",
    "\u202eright to left",
    "",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        yield made


def test_a_directive_reaches_the_scheduler_as_the_exact_string_or_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    assert len(HOSTILE) >= 40
    given: dict[str, str] = {}
    script = tmp_path / "job.sbatch"
    refused = []
    for value in HOSTILE:
        try:
            line = directive("comment", value)
        except Refused:
            refused.append(value)
            continue
        script.write_text(f"#!/bin/bash\n{line}\n#SBATCH --output=/dev/null\ntrue\n")
        said = cluster.run(["sbatch", "--parsable", "--hold", f"--chdir={tmp_path}", str(script)])
        given[said.strip()] = value
    known = cluster.run(["squeue", "--noheader", "--format=%A|%k", "--states=all"])
    rows = dict(line.split("|", 1) for line in known.splitlines())
    assert {job: rows[job] for job in given} == given
    assert all(any(not c.isprintable() for c in value) for value in refused)
    accounts = cluster.run(["squeue", "--noheader", "--format=%a", "--states=all"]).split()
    assert "other" not in accounts
    assert not (tmp_path / "INJECTED").exists()
    cluster.run(["scancel", *given])


def test_a_setting_reaches_the_script_as_the_exact_string_or_is_refused() -> None:
    base = config("launch=slurm")
    for value in HOSTILE:
        container = base.launch.container.model_copy(update={"image": value, "kind": "pyxis"})
        launch = base.launch.model_copy(
            update={"account": value, "setup_script": value, "modules": (value,)}
            | {"container": container}
        )
        found = {p.where for p in slurm_problems(base.model_copy(update={"launch": launch}))}
        bad = not value.strip() or value.startswith("-") or any(not c.isprintable() for c in value)
        wanted = {
            *("launch.account", "launch.setup_script", "launch.modules.0"),
            "launch.container.image",
        }
        assert found >= wanted if bad else not found & wanted, value


def test_no_extra_option_says_what_another_setting_says() -> None:
    base = config("launch=slurm")
    for text in (*HOSTILE, "--output=x", "--nodes=9", "--wrap=id", "--export=ALL", "--partit=x"):
        launch = base.launch.model_copy(update={"extra": (text,)})
        assert list(slurm_problems(base.model_copy(update={"launch": launch}))), text
    for text in ("--switches=1", "--comment=$(id) 'x'", "--nice", "--gres-flags=enforce-binding"):
        launch = base.launch.model_copy(update={"extra": (text,)})
        assert not list(slurm_problems(base.model_copy(update={"launch": launch}))), text


def test_a_run_in_a_strange_place_runs_and_nothing_of_the_environment_is_written(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = tmp_path / 'it\'s a $(touch INJECTED) "place" #1 100%'
    place.mkdir()
    one = slurm_run(cluster, tmp_path, {})
    root = f"run.root='{str(place / 'runs').translate({39: chr(92) + chr(39)})}'"
    one.run = type(one.run)(place / "runs" / "run")
    one.settings = [s for s in one.settings if not s.startswith("run.root=")] + [root]
    one.env |= {"MY_API_KEY": "sesame-123456", "WANDB_API_KEY": "sesame-654321"}
    one.settings += ["launch.environment=[PATH,HOME,PYTHONPATH,FAKE_BEHAVIOUR,WANDB_*]"]
    one.submit()
    assert one.until_over() == "COMPLETED", one.words
    assert not list(tmp_path.rglob("INJECTED"))
    assert not Path("INJECTED").exists()
    for path in place.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert b"sesame" not in text, path
    shown = cluster.run(["scontrol", "show", "job", one.job]) + cluster.run(["ps", "axww"])
    assert "sesame" not in shown


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["launch.partition=man"], "there is no partition 'man'; there is main, patient, short, "),
        (["resources.nodes=3", "batch.micro_batch_size=2"], "it would wait for ever"),
        (["launch.spare_nodes=1"], "2 nodes and 1 to spare, but partition main has 2"),
        (["launch.gpus=gpus_per_node", "launch.gpu_type=h100"], "has no GPU 'h100'"),
        (
            ["launch.gpus=gres", "resources.ranks_per_node=5", "batch.micro_batch_size=1"],
            "5 ranks a node, but a node of partition main has 4 GPUs",
        ),
        (["launch.partition=short", "launch.time_limit_h=2"], "partition short gives 0.167 h"),
        (["launch.time_limit_h=0.05"], "are over before training begins"),
        (["launch.constraint=h100"], "launch.constraint=...; sinfo -o %f"),
        (["launch.cpus_per_rank=64"], "64 CPUs for each of 2 ranks, but a node of partition"),
        (["launch.reservation=mine"], "launch.reservation=...; scontrol show reservations"),
        (["run.root=/proc/runs"], "nothing can be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_slurm_could_never_run_is_refused_before_it_is_queued(
    cluster: Cluster, tmp_path: Path, settings: list[str], said: str
) -> None:
    before = cluster.run(["squeue", "--noheader", "--states=all", "--format=%i"])
    one = slurm_run(cluster, tmp_path, {}, *settings).submit(check=False)
    assert said in one.said
    assert "try: " in one.said or "choose" in one.said
    assert not (tmp_path / "runs").exists()
    assert cluster.run(["squeue", "--noheader", "--states=all", "--format=%i"]) == before


def test_without_slurm_it_says_so(cluster: Cluster, tmp_path: Path) -> None:
    one = slurm_run(cluster, tmp_path, {})
    one.before = ["env", "PATH=/nowhere"]
    assert "sbatch, squeue, scancel not found on PATH" in one.submit(check=False).said
    one = slurm_run(cluster, tmp_path, {})
    text = (cluster.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(f"{text}\nSlurmctldPort=1\n")
    one.env["SLURM_CONF"] = str(tmp_path / "slurm.conf")
    assert "Slurm does not answer: sinfo: " in one.submit(check=False).said


def test_test_only_writes_and_queues_nothing(cluster: Cluster, tmp_path: Path) -> None:
    one = slurm_run(cluster, tmp_path, {}, "launch.test_only=true").submit()
    assert re.search(r"would start|to start at", one.said), one.said
    assert not (tmp_path / "runs").exists()


def test_a_submission_takes_little_time_beside_sbatch(cluster: Cluster, tmp_path: Path) -> None:
    one = slurm_run(cluster, tmp_path, {})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    one.submit()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert cpu_s < 15.0  # 1.3 s on a machine that is busy; docs/log.md has a quiet one's wall time
    cluster.run(["scancel", one.job], check=False)


def test_a_body_value_is_quoted_for_the_shell(tmp_path: Path) -> None:
    for value in HOSTILE:
        if "\0" in value:
            continue
        said = subprocess.run(
            ["bash", "-c", f'run={shlex.quote(value)}; printf %s "$run"'],
            capture_output=True,
            cwd=tmp_path,
            check=True,
        ).stdout
        assert said == value.encode()
    assert not (tmp_path / "INJECTED").exists()
