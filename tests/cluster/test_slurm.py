"""What becomes of a run on a real Slurm: two nodes of two ranks each, ranks that do not compute."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import RANKS, SlurmRun, pid_of, several, slurm_run
from trainer.records.attempt import read_error
from trainer.records.json_file import read_json

pytestmark = pytest.mark.cluster

Maker = Callable[..., SlurmRun]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        yield made


@pytest.fixture
def a_run(cluster: Cluster, tmp_path: Path) -> Iterator[Maker]:
    made: list[SlurmRun] = []

    def make(what: dict[str, list[str]], *settings: str) -> SlurmRun:
        made.append(slurm_run(cluster, tmp_path, what, *settings))
        return made[-1]

    yield make
    for each in made:
        cluster.run(["scancel", "--signal=KILL", "--full", each.job], check=False)
        cluster.run(["scancel", each.job], check=False)


def test_ranks_of_two_nodes_finish(a_run: Maker) -> None:
    one = a_run({"0": ["say", "hello", "there"]}).submit()
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "done", 0, None)]
    assert "hello there" in one.run.attempt(1).rank_log(0).read_text()
    assert read_json(one.run.attempt(1).ended)["codes"] == {str(r): 0 for r in range(4)}
    assert one.state == "finished"


def test_a_rank_that_is_killed_costs_one_attempt_in_the_same_job(a_run: Maker) -> None:
    one = a_run(first("wait")).submit().until_up()
    os.kill(pid_of(one.run, 3), signal.SIGKILL)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "crash"), (2, "done", 0, None)]
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.host) == (3, "node2")
    assert one.job_of(1) == one.job_of(2) == one.job


def test_a_task_that_is_killed_takes_its_rank_along_and_is_named(a_run: Maker) -> None:
    one = a_run(first("wait")).submit().until_up()
    os.kill(pid_of(one.run, 1, program=b"launch.slurm.task"), signal.SIGKILL)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "crash"), (2, "done", 0, None)]
    assert "rank 1 was killed by signal 9" in one.lines[0]["why"]


def test_a_rank_that_stands_still_is_found_and_the_attempt_ended(a_run: Maker) -> None:
    one = a_run(first("hang"), "watch.start_s=20", "watch.grace_s=1").submit()
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "hang"), (2, "done", 0, None)]


def test_a_crash_loop_ends(a_run: Maker) -> None:
    one = a_run({"all": ["wait"], "2": ["die"]}).submit()
    assert one.until_over() == "FAILED", one.words
    assert [line["exit_code"] for line in one.lines] == [76, 76, 79]
    assert one.state == "gave up"
    assert "3 attempts in a row without a new checkpoint" in one.words


def test_a_stop_saves_and_the_run_stays_stopped(a_run: Maker) -> None:
    one = a_run({"all": ["wait"]}).submit().until_up()
    assert "stopped (user) and saved at step 5" in one.longhaul("stop", str(one.run.root))
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "give_up", 75, "user")]
    assert one.state == "stopped"


def test_a_cancelled_job_stays_cancelled(a_run: Maker, cluster: Cluster) -> None:
    one = a_run({"all": ["wait"]}).submit().until_up()
    cluster.run(["scancel", one.job])
    assert one.until_over() == "CANCELLED", one.words
    assert "requeue" not in one.words
    assert one.state == "stopped"
    one.submit("resume", "steps.total=400")
    assert one.until_state_of_run("running") == "running"
    assert one.job_of(2) == one.job != one.job_of(1)


def test_a_queued_run_can_be_looked_at_and_stopped_but_not_started_twice(
    a_run: Maker, cluster: Cluster
) -> None:
    cluster.run(["scontrol", "update", "partition=short", "state=down"])
    try:
        one = a_run({"all": ["wait"]}, "launch.partition=short").submit()
        one.until_state_of_run("pending")
        assert "the partition takes jobs but starts none" in one.longhaul(
            "status", str(one.run.root)
        )
        refused = one.submit("resume", check=False).said
        first_job = one.job_of(1)
        assert f"waits already: job {first_job} waits: " in refused
        refused = one.longhaul("runs", "rename", str(one.run.root), "other", check=False)
        assert "is not over" in refused
        assert "has no logs yet: job" in one.longhaul("logs", str(one.run.root), check=False)
        said = one.longhaul("stop", str(one.run.root))
        assert "stopped (user) before training began" in said
        assert cluster.until_state(first_job, "CANCELLED") == "CANCELLED"
        assert one.state == "stopped"
    finally:
        cluster.run(["scontrol", "update", "partition=short", "state=up"])


def test_a_job_that_cannot_start_its_ranks_queues_again(a_run: Maker, tmp_path: Path) -> None:
    script = tmp_path / "env.sh"
    script.write_text(
        "if [[ ${SLURM_RESTART_COUNT:-0} == 0 ]]; then export SLURM_MEM_PER_CPU=9999999; fi\n"
    )
    one = a_run({}, f"launch.setup_script={script}").submit()
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "node"), (2, "done", 0, None)]
    assert "srun could not start the ranks" in one.lines[0]["why"]
    assert "Memory required by task is not available" in one.longhaul(
        "logs", str(one.run.root), "--attempt", "1", "--why"
    )


def test_preemption_without_grace_saves_and_slurm_brings_the_job_back(
    a_run: Maker, cluster: Cluster
) -> None:
    one = a_run(first("slow 2")).submit().until_up()
    urgent(cluster)
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 75, "preempt"), (2, "done", 0, None)]
    assert "stopped (scheduler) and saved at step 5" in one.lines[0]["why"]
    assert one.job_of(2) == one.job


def test_preemption_with_grace_saves_and_the_job_requeues_itself(
    a_run: Maker, cluster: Cluster
) -> None:
    one = a_run(first("slow 4"), "launch.partition=patient").submit().until_up()
    urgent(cluster)
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 75, "preempt"), (2, "done", 0, None)]
    assert "requeue" in one.words


def test_preemption_without_time_to_save_is_no_failure(a_run: Maker, cluster: Cluster) -> None:
    one = a_run(first("hang")).submit().until_up()
    urgent(cluster)
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "preempt"), (2, "done", 0, None)]


def test_the_time_limit_saves_and_the_job_goes_on_after_it(a_run: Maker, cluster: Cluster) -> None:
    one = a_run(first("wait"), "launch.signal_lead_s=60").submit().until_up()
    cluster.run(["scontrol", "update", f"JobId={one.job}", "TimeLimit=1"])
    cluster.wait(lambda: len(one.lines) >= 1)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 75, "time_limit"), (2, "done", 0, None)]
    assert "stopped (time_limit) and saved at step 5" in one.lines[0]["why"]


def test_several_runs_are_one_array_and_each_is_a_run_of_its_own(
    a_run: Maker, cluster: Cluster
) -> None:
    """Two at once: the first is stopped by name, the second loses a rank, the others wait."""
    asked = a_run(first("wait"), "resources.nodes=1", "launch.array_limit=2")
    runs = several(asked, "run.seed=1,2,3,4")
    assert [one.run.name for one in runs] == [f"run-seed-{seed}" for seed in (1, 2, 3, 4)]
    master = runs[0].job.partition("_")[0]
    assert [one.job for one in runs] == [f"{master}_{k}" for k in range(4)]
    one, two, three, four = runs
    one.until_up(ranks=range(2))
    two.until_up(ranks=range(2))
    assert [each.state for each in runs] == ["running", "running", "pending", "pending"]
    assert "as many of the array run as it allows" in three.longhaul("status", str(three.run.root))
    assert "waits already" in three.submit("resume", check=False).said
    three.job = f"{master}_2"
    four.longhaul("stop", str(four.run.root))
    assert [three.state, four.state] == ["pending", "stopped"]
    one.longhaul("stop", str(one.run.root))
    os.kill(pid_of(two.run, 1), signal.SIGKILL)
    assert two.until_over() == "COMPLETED", two.words
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "give_up", 75, "user")]
    assert two.ends == [(1, "again", 76, "crash"), (2, "done", 0, None)]
    assert two.job_of(2) == two.job
    three.until_up(ranks=range(2))
    urgent(cluster)
    assert three.until_over() == "COMPLETED", three.words
    assert three.ends == [(1, "again", 75, "preempt"), (2, "done", 0, None)]
    assert [each.state for each in runs] == ["stopped", "finished", "finished", "stopped"]
    assert len({read_json(each.run.run_json)["run_id"] for each in runs}) == 4
    assert all((each.run.root / f"slurm-{each.job}.out").exists() for each in (one, two, three))


def test_where_there_are_no_namespaces_one_host_plays_all_nodes(tmp_path: Path) -> None:
    with slurm_cluster(tmp_path / "here", nodes=2, lab=False) as here:
        one = slurm_run(here, tmp_path, first("wait")).submit().until_up()
        os.kill(pid_of(one.run, 3), signal.SIGKILL)
        assert one.until_over() == "COMPLETED", one.words
        assert one.ends == [(1, "again", 76, "crash"), (2, "done", 0, None)]


def first(what: str, then: str = "finish") -> dict[str, list[str]]:
    """All ranks do `what` in attempt 1 and `then` after it."""
    return {"all": [then]} | {f"1:{rank}": what.split() for rank in range(RANKS)}


def urgent(cluster: Cluster) -> None:
    """Somebody whose jobs come first wants all nodes for a moment."""
    words = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.run([*words, "--wrap=sleep 1"])
