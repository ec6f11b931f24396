"""What a job does next: from the files of a run, and from what Slurm says of the job."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from launch.backends.slurm import SlurmBackend
from launch.node.ranks_spec import RANKS_FILE, RanksSpec, spec_text
from launch.run.budgets import LAUNCH_FAILED, RestartRules
from launch.run.job_record import Job, JobRecord, JobState, read_job, write_job
from launch.run.lease import Lease
from launch.run.node_record import NodeRecord, write_node
from launch.run.run_folder import new_attempt
from launch.run.status import status_of
from launch.slurm.verdict import JobFacts, after, begin
from trainer.errors import Exit, Refused
from trainer.records.attempt import Done, ErrorRecord, Started, Stop, write_record
from trainer.records.json_file import write_json
from trainer.records.run_files import AttemptFiles, RunFiles

JOB = JobFacts(job="12", nodes=2, restarts=0)
SPEC = RanksSpec(
    module="trainer.worker",
    nodes=2,
    ranks_per_node=2,
    device="cpu",
    threads_per_rank=1,
    rendezvous_port=0,
    grace_s=60.0,
    restart=RestartRules(enabled=True),
)
SCRIPT = "#!/bin/bash\n#SBATCH --requeue\n"


@dataclass
class World:
    """One run whose first attempt a job has carried to its end. `say`: what squeue answers."""

    run: RunFiles
    say: Callable[[str], None]

    @property
    def files(self) -> AttemptFiles:
        return self.run.attempt(1)

    def ended(self, codes: dict[int, int], *, silent: bool = False) -> None:
        """`silent`: the second node says nothing."""
        for node in (0, 1):
            ranks = (2 * node, 2 * node + 1)
            mine = {str(rank): codes[rank] for rank in ranks if rank in codes}
            over = not (silent and node == 1)
            write_node(self.files, NodeRecord(node, f"n{node + 1}", ranks, over, mine))

    def failed(self, kind: str, *, rank: int = 0, code: int = Exit.FAILED) -> None:
        error = ErrorRecord(time.time(), rank, "n1", kind, "what it said", int(code))
        write_record(self.files.error, error)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tools = tmp_path / "bin"
    tools.mkdir()

    def say(state: str) -> None:
        (tools / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
        (tools / "squeue").chmod(0o755)

    (tools / "sbatch").write_text("#!/bin/sh\nexit ${SBATCH_ANSWER:-0}\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    say("RUNNING")
    run = RunFiles(tmp_path / "run")
    run.root.mkdir()
    files = new_attempt(run)
    files.submission.mkdir()
    (files.root / RANKS_FILE).write_text(spec_text(SPEC))
    (files.root / "submission" / "job.sbatch").write_text(SCRIPT)
    write_json(files.plan, {"attempt": 1, "world_size": 4, "config": {}})
    write_job(files, JobRecord("slurm", "12"))
    Lease.take(files)
    write_record(files.started, Started(time.time(), 0, 4, "n1"))
    return World(run, say)


def test_a_finished_run_is_left(world: World) -> None:
    write_record(world.files.done, Done(time.time(), 300, 1.0))
    world.ended(dict.fromkeys(range(4), 0))
    assert after(world.run, 1, JOB) == "leave 0"
    assert begin(world.run, 1, JOB) == "leave 0"


def test_a_shell_that_is_killed_before_its_verdict_leaves_the_ranks_own_words(world: World) -> None:
    """Slurm gives a cancelled job's script no longer than its ranks."""
    write_record(world.files.stop, Stop("scheduler", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    seen = status_of(world.run, Job(JobState.ENDED, "job 12: cancelled"))
    assert seen.state == "stopped"
    assert "saved at step 0" in seen.why
    world.ended({0: 75, 1: 75, 2: 75})
    assert status_of(world.run, Job(JobState.ENDED, "job 12: cancelled")).state == "failed"
    world.ended(dict.fromkeys(range(4), 75), silent=True)
    assert status_of(world.run, Job(JobState.ENDED, "job 12: cancelled")).state == "failed"


def test_ranks_that_failed_start_again_here(world: World) -> None:
    world.failed("Killed", rank=3)
    world.ended({0: 75, 1: 75, 2: 75, 3: -9})
    assert after(world.run, 1, JOB) == "run 2"
    record = read_job(world.run.attempt(2))
    assert record is not None
    assert record.job == "12"


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", "CANCELLED"])
def test_a_job_that_slurm_is_ending_is_left_alone(world: World, state: str) -> None:
    world.say(state)
    write_record(world.files.stop, Stop("scheduler", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "leave 75"
    assert not world.run.attempt(2).root.exists()


def test_what_took_the_allocation_away_brings_the_job_back(world: World) -> None:
    write_record(world.files.stop, Stop("scheduler", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "requeue"
    assert begin(world.run, 1, JOB) == "run 2"  # when it is back


def test_where_slurm_does_not_requeue_the_job_ends(world: World) -> None:
    (world.files.root / "submission" / "job.sbatch").write_text("#SBATCH --no-requeue\n")
    write_record(world.files.stop, Stop("time_limit", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "leave 75"


def test_an_attempt_that_followed_by_itself_knows_that_its_job_does_not_requeue(
    world: World,
) -> None:
    (world.files.root / "submission" / "job.sbatch").write_text("#SBATCH --no-requeue\n")
    world.failed("Killed")
    world.ended({0: -9})
    assert after(world.run, 1, JOB) == "run 2"
    second = World(world.run, world.say).run.attempt(2)
    Lease.take(second)
    write_record(second.started, Started(time.time(), 0, 4, "n1"))
    write_record(second.stop, Stop("time_limit", time.time()))
    write_node(second, NodeRecord(0, "n1", (0, 1), True, {"0": 75, "1": 75}))
    assert after(world.run, 2, JOB) == "leave 75"


def test_the_next_of_a_chain_goes_on_instead_and_the_last_requeues(world: World) -> None:
    write_job(world.files, JobRecord("slurm", "12", chain=("13",)))
    write_record(world.files.stop, Stop("time_limit", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "leave 75"
    following = replace(JOB, job="13")
    assert begin(world.run, 1, following) == "run 2"
    record = read_job(world.run.attempt(2))
    assert record is not None
    assert record.jobs == ("13",)


def test_a_run_that_was_asked_to_stop_stays_stopped_also_for_a_chain(world: World) -> None:
    write_job(world.files, JobRecord("slurm", "12", chain=("13",)))
    write_record(world.files.stop, Stop("user", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "leave 0"
    assert begin(world.run, 1, replace(JOB, job="13")) == "leave 0"


def test_a_stranger_leaves_the_run_alone(world: World) -> None:
    world.ended(dict.fromkeys(range(4), 75))
    assert begin(world.run, 1, replace(JOB, job="99")) == "leave 78"
    new_attempt(world.run)
    assert after(world.run, 1, JOB) == "leave 78"  # somebody took the run over meanwhile


def test_without_restarts_a_failure_ends_the_job_and_a_preemption_does_not(world: World) -> None:
    spec = replace(SPEC, restart=RestartRules(enabled=False))
    (world.files.root / RANKS_FILE).write_text(spec_text(spec))
    world.failed("Killed")
    world.ended({0: -9})
    assert after(world.run, 1, JOB) == "leave 76"


def test_ranks_that_were_never_started_ask_for_another_allocation(world: World) -> None:
    world.failed(LAUNCH_FAILED)
    assert after(world.run, 1, JOB) == "requeue"


def test_a_node_that_says_nothing_was_lost_and_is_not_used_again(world: World) -> None:
    write_record(world.files.stop, Stop("scheduler", time.time()))  # srun ended the others
    world.ended({0: 75, 1: 75}, silent=True)
    assert after(world.run, 1, replace(JOB, nodes=3)) == "run 2 --exclude=n2"
    lines = world.run.attempts_log.read_text()
    assert '"cause": "node"' in lines


def test_wrong_numbers_move_the_run_to_other_nodes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.failed("ReplicasDiffer", rank=2)
    world.ended({0: 76, 1: 76, 2: 76, 3: 76})
    assert after(world.run, 1, JOB) == "resubmit n2"


def test_with_a_node_to_spare_it_is_left_out_at_once(world: World) -> None:
    world.failed("ReplicasDiffer", rank=2)
    world.ended({0: 76, 1: 76, 2: 76, 3: 76})
    assert after(world.run, 1, replace(JOB, nodes=3)) == "run 2 --exclude=n2"


def test_a_stop_between_two_attempts_is_not_lost_in_silence(world: World, tmp_path: Path) -> None:
    scancel = tmp_path / "bin" / "scancel"
    scancel.write_text("#!/bin/sh\n")
    scancel.chmod(0o755)
    write_record(world.files.stop, Stop("scheduler", time.time()))
    world.ended(dict.fromkeys(range(4), 75))
    assert after(world.run, 1, JOB) == "requeue"
    world.say("'12|RUNNING|None|N/A|1:00|n1'")
    with pytest.raises(Refused, match="run begins its next attempt now: longhaul stop run once"):
        SlurmBackend().stop(world.files)


def test_what_only_a_person_can_mend_ends_the_job(world: World) -> None:
    world.failed("DataError", code=Exit.STOP)
    world.ended({0: 78})
    assert after(world.run, 1, JOB) == "leave 78"
