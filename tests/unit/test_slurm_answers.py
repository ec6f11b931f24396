"""What Slurm's commands print, from version 20 to 25, and what is made of it.

Printed by the Slurm of the cluster tests: all of 22.05. Shapes that were found in recorded outputs
of others' clusters, in public repositories: sacct of 2023 and 2024 (rug-cit-hpc/hb-jobinfo: array
tasks as 5908801_3 in JobID, "CANCELLED by UID", "None assigned", TIMEOUT, node lists), %i and %R of
squeue there, sinfo of CSC's Puhti and Mahti (gpu:a100:4(S:0-1),nvme:3500), parts of GPUs as
gpu:3g.40gb:8, "(JobArrayTaskLimit)", and "ReqNodeNotAvail, UnavailableNodes:gpu-q-[2-47]". Written
after the manuals, and seen nowhere: several states in one text column (recorded only in JSON),
EXPEDITING, REQUEUE_HOLD's reason, components of heterogeneous jobs (12+0).
"""

from __future__ import annotations

import pytest

from launch.run.job_record import Job, JobState
from launch.slurm.client import Answer
from launch.slurm.place import SlurmPlace, first_host
from launch.slurm.preflight import gpus_of, seconds_of, shapes_of
from launch.slurm.queue import is_answer, job_of, newest, rows_of_sacct, rows_of_squeue
from launch.slurm.reasons import why_pending
from trainer.errors import WorldError

# squeue --noheader --states=all --format=%i|%T|%r|%S|%L|%N
SQUEUE = {
    "20.11": "4012|PENDING|Priority|N/A|1-00:00:00|\n"
    "4013|RUNNING|None|2020-12-01T10:00:00|23:59:58|gpu[01-02]\n",
    "21.08": "77|PENDING|(null)|2021-09-01T08:30:00|2:00:00|\n"
    "78|COMPLETING|NonZeroExitCode|2021-09-01T08:00:00|0:00|n1\n",
    "22.05": "2|COMPLETED|None|2026-11-22T14:13:06|UNLIMITED|node[1-2]\n"
    "3|PENDING|BeginTime|2026-11-22T14:15:20|UNLIMITED|\n"
    "18|CANCELLED|PartitionDown|N/A|10:00|\n",
    "23.11": "9_1|RUNNING|None|2023-12-01T10:00:00|INVALID|node7\n"
    "12+0|CONFIGURING|None|2023-12-01T10:00:00|1:00:00|n[1-3]\n",
    "24.05": "501|RUNNING,COMPLETING|None|2024-06-01T10:00:00|10:00|rack1-n[01-64]\n"
    "502|PENDING|ReqNodeNotAvail, UnavailableNodes:n[1-2]|N/A|10:00|\n",
    "25.05": "6|REQUEUE_HOLD|launch_failed_requeued_held|N/A|10:00|\n"
    "7|EXPEDITING|None|N/A|10:00|\n",
}
STATES = {
    "20.11": [JobState.PENDING, JobState.RUNNING],
    "21.08": [JobState.PENDING, JobState.RUNNING],
    "22.05": [JobState.ENDED, JobState.PENDING, JobState.ENDED],
    "23.11": [JobState.RUNNING, JobState.RUNNING],
    "24.05": [JobState.RUNNING, JobState.PENDING],
    "25.05": [JobState.PENDING, JobState.UNKNOWN],  # a state nobody here knows is no failure
}
# sacct --noheader --parsable2 --allocations --format=JobID,State,ExitCode,NodeList
SACCT = {
    "20.11": ("55|CANCELLED by 1000|0:15|n[1-2]\n", ["CANCELLED"]),
    "21.08": ("56|NODE_FAIL|1:0|n1\n56|COMPLETED|0:0|n2\n", ["NODE_FAIL", "COMPLETED"]),
    "22.05": ("57|OUT_OF_MEMORY|0:125|n1\n58|TIMEOUT|0:0|n1\n", ["OUT_OF_MEMORY", "TIMEOUT"]),
    "23.02": (
        "590_3|COMPLETED|0:0|v100gpu10\n590_4|CANCELLED by 10290820|0:0|None assigned\n"
        "591|TIMEOUT|0:0|omni[11-12]\n592|FAILED|1:0|omni[1,10-12]\n",
        ["COMPLETED", "CANCELLED", "TIMEOUT", "FAILED"],
    ),
    "23.11": ("59|PREEMPTED|0:15|n1\n", ["PREEMPTED"]),
    "24.11": ("60|CANCELLED+|0:0|None assigned\n", ["CANCELLED"]),
}


@pytest.mark.parametrize("version", SQUEUE)
def test_the_queue_is_read(version: str) -> None:
    jobs = [job_of(row) for row in rows_of_squeue(SQUEUE[version])]
    assert [job.state for job in jobs] == STATES[version]


@pytest.mark.parametrize("version", SACCT)
def test_the_accounts_are_read(version: str) -> None:
    text, states = SACCT[version]
    rows = list(rows_of_sacct(text))
    assert [row.state for row in rows] == states
    assert all(job_of(row).state is JobState.ENDED for row in rows)


def test_why_a_job_waits_is_said_in_words() -> None:
    rows = list(rows_of_squeue(SQUEUE["22.05"]))
    assert job_of(rows[1]).why == (
        "job 3 waits: it was requeued a moment ago; Slurm lets it start a little later "
        "(BeginTime), expected to start 2026-11-22T14:15:20"
    )
    assert why_pending("launch_failed_requeued_held").startswith("it could not be started")
    assert why_pending("job_requeued_in_held_state").startswith("it was queued again and is held")
    assert why_pending("QOSMaxGRESPerUser") == (
        "this QOS gives no more to you now (QOSMaxGRESPerUser)"
    )
    assert why_pending("SomethingNew") == "SomethingNew"
    assert why_pending("PartitionNodeLimit").endswith("it never starts (PartitionNodeLimit)")


@pytest.mark.parametrize(
    ("line", "note", "words"),
    [
        ("8|SUSPENDED|None|2022-11-22T14:13:06|1:00|n1", "suspended", "processes stand still"),
        ("8|STOPPED|None|2023-11-22T14:13:06|1:00|n1", "stopped", "stopped by a signal"),
        ("8|CONFIGURING|None|2023-12-01T10:00:00|1:00:00|n[1-3]", "configuring", "being started"),
        ("8|CONFIGURING|Prolog|2023-12-01T10:00:00|1:00:00|n1", "configuring", "being started"),
        ("8|COMPLETING|NonZeroExitCode|2021-09-01T08:00:00|0:00|n1", "completing", "is over"),
        ("8|RESIZING|None|2021-09-01T08:00:00|0:00|n1", "", "(resizing)"),
        ("8|RUNNING|None|2020-12-01T10:00:00|1:00|n1", "", "job 8 on n1, 1:00 left"),
        ("8|PENDING|JobHeldUser|N/A|10:00|", "held", "scontrol release"),
        ("8|PENDING|JobHeldAdmin|N/A|10:00|", "held", "an administrator holds it"),
        ("8|PENDING|launch failed requeued held|N/A|10:00|", "held", "could not be started"),
        ("8|PENDING|job_requeued_in_held_state|N/A|10:00|", "held", "queued again and is held"),
        ("8|REQUEUE_HOLD|job_requeued_in_held_state|N/A|10:00|", "held", "queued again"),
        ("8|SPECIAL_EXIT|None|N/A|10:00|", "held", "waits"),
        ("8|RESV_DEL_HOLD|ReservationDeleted|N/A|10:00|", "held", "reservation is gone"),
        ("8|PENDING|BeginTime|2026-11-22T14:15:20|UNLIMITED|", "requeued", "requeued a moment"),
        ("8|REQUEUED|None|N/A|UNLIMITED|", "requeued", "not looked at it yet"),
        ("8|PENDING|PartitionTimeLimit|N/A|10:00|", "never starts", "it never starts"),
        ("8|PENDING|QOSMinGRES|N/A|10:00|", "never starts", "it never starts"),
        ("8|PENDING|Priority|N/A|10:00|", "", "others are before it"),
        ("8|COMPLETED|None|2026-11-22T14:13:06|UNLIMITED|n1", "", "completed"),
    ],
)
def test_what_a_job_is_besides_running_or_waiting_is_a_word(
    line: str, note: str, words: str
) -> None:
    (row,) = rows_of_squeue(line)
    job = job_of(row)
    assert job.note == note
    assert words in job.why


def test_tasks_of_an_array_are_jobs_of_their_own() -> None:
    text = (
        "12134_5|PENDING|JobArrayTaskLimit|N/A|1:00:00|\n"
        "12134_4|RUNNING|None|2024-01-05T11:09:31|58:00|epyc0\n"
    )
    waits, runs = (job_of(row) for row in rows_of_squeue(text))
    assert waits.why == (
        "job 12134_5 waits: as many of the array run as it allows (JobArrayTaskLimit)"
    )
    assert runs.why == "job 12134_4 on epyc0, 58:00 left"


def test_noise_between_the_lines_is_left_out() -> None:
    noisy = "slurm_load_jobs error: nothing\n\n" + SQUEUE["20.11"] + "torn|li"
    assert len(list(rows_of_squeue(noisy))) == 2


def test_no_answer_is_not_an_answer() -> None:
    assert is_answer(Answer(0))
    assert is_answer(Answer(1, err="slurm_load_jobs error: Invalid job id specified"))
    assert not is_answer(Answer(1, err="Unable to contact slurm controller (connect failure)"))
    assert not is_answer(Answer(None, err="squeue is not installed here"))


def test_of_a_chain_the_first_that_is_not_over_counts() -> None:
    known = {
        "1": Job(JobState.ENDED, "over"),
        "2": Job(JobState.RUNNING, "runs"),
        "3": Job(JobState.PENDING, "waits"),
    }
    assert newest(["1", "2", "3"], known).why == "runs"
    assert newest(["1"], known).why == "over"
    assert newest(["9", "1"], known).state is JobState.UNKNOWN


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node[1-4]", "node1"),
        ("gpu[07,09-12],gpu20", "gpu07"),
        ("rack[01-03,7]-n[1,2],x", "rack01-n1"),
        ("a-b,c", "a-b"),
        ("n[003]", "n003"),
    ],
)
def test_the_first_node_is_where_the_ranks_meet(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_a_port_differs_from_attempt_to_attempt_and_from_job_to_job() -> None:
    names = ("PROCID", "LOCALID", "NODEID", "STEP_NUM_TASKS", "JOB_ID", "STEP_ID")
    env = {f"SLURM_{name}": "4" for name in names}
    env |= {"SLURMD_NODENAME": "n1", "SLURM_STEP_NODELIST": "n[1-2]"}
    place = SlurmPlace.from_env(env)
    ports = {place.rendezvous(0, attempt=n)[1] for n in range(1, 50)}
    assert len(ports) == 49
    assert all(20_000 <= port < 30_000 for port in ports)
    assert place.rendezvous(1234, attempt=2) == ("n1", 1234)
    del env["SLURM_PROCID"]
    with pytest.raises(WorldError, match="this is no task of srun"):
        SlurmPlace.from_env(env)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("infinite", None),
        ("n/a", None),
        ("10:00", 600.0),
        ("90", 5400.0),
        ("2:00:00", 7200.0),
        ("1-00:00:00", 86400.0),
        ("1-12", 129600.0),
        ("1-12:30", 131400.0),
    ],
)
def test_time_limits_are_read(limit: str, seconds: float | None) -> None:
    assert seconds_of(limit) == seconds


def test_what_a_partition_has_is_read() -> None:
    text = "gpu*|2-00:00:00|16|gpu:h100:8(S:0-1),nic:2|128\ncpu|infinite|4|(null)|8+\nnoise\n"
    gpu, cpu = shapes_of(text)
    assert (gpu.is_default, cpu.is_default) == (True, False)
    assert (gpu.cpus, cpu.cpus) == (128, None)
    assert (gpu.partition, gpu.limit_s, gpu.nodes) == ("gpu", 172800.0, 16)
    assert gpus_of(gpu.gres) == {"h100": 8}
    assert gpus_of("gpu:a100:4(S:0-1),nvme:3500") == {"a100": 4}
    assert gpus_of("gpu:3g.40gb:8(S:0-1),gpu:2") == {"3g.40gb": 8, "": 2}
    assert gpus_of("gpu:8") == {"": 8}
    assert gpus_of("gpu:a100:4,gpu:h100:8,gpu:2") == {"a100": 4, "h100": 8, "": 2}
    assert (cpu.limit_s, gpus_of(cpu.gres)) == (None, {})
