"""A Slurm that answers strangely, or not at all, is taken at its word and never guessed at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.backends.slurm import SlurmBackend
from launch.base import JobState, Submission
from launch.run.job_record import JobRecord, read_job, write_job
from launch.slurm.client import Answer, accepted
from launch.slurm.preflight import setup_problems
from launch.slurm.queue import look_up
from tests.helpers.configs import config
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import Exit, LonghaulError, Refused
from trainer.records.run_files import AttemptFiles, RunFiles

Says = Callable[[str, str], None]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """says("squeue", "true"): a command of Slurm is this line of shell; `calls` has its words."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        text = f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{body}\n'
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    for name in ("sbatch", "squeue", "sacct", "scancel"):
        put(name, "true")
    return put


@pytest.fixture
def files(tmp_path: Path) -> AttemptFiles:
    made = RunFiles(tmp_path / "runs" / "run").attempt(1)
    made.submission.mkdir(parents=True)
    made.plan.write_text(json.dumps({"config": {"launch": {"chain": 1}}}))
    return made


def submit(files: AttemptFiles) -> None:
    run = files.root.parent.parent
    SlurmBackend().submit(Submission(argv=("sbatch",), files={}, env={}), run, attempt=1)


def calls(tmp_path: Path, name: str) -> list[str]:
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(f"{name} ")]


def test_the_number_of_a_job_is_found_among_a_sites_own_words() -> None:
    assert accepted(Answer(0, "77\n")) == ("77", "")
    assert accepted(Answer(0, "77;alpha\n")) == ("77", "alpha")
    assert accepted(Answer(0, "12 jobs of yours wait\n77\nhave a nice day\n")) == ("77", "")
    for out in ("", "\n", "Submitted\n", "Submitted batch job 77\n", "-7\n", "7 7\n"):
        assert accepted(Answer(0, out)) is None
    assert accepted(Answer(1, "77\n")) is None


def test_what_a_site_prints_besides_is_no_part_of_the_number(
    says: Says, files: AttemptFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    says("sbatch", "echo use wisely; echo '77;alpha'")
    submit(files)
    assert read_job(files) == JobRecord("slurm", "77", "alpha")
    assert "job 77 is queued" in capsys.readouterr().out


def test_an_answer_without_a_number_is_no_submission(says: Says, files: AttemptFiles) -> None:
    says("sbatch", "echo welcome")
    with pytest.raises(LonghaulError) as caught:
        submit(files)
    assert caught.value.exit_code == Exit.FAILED
    assert str(caught.value) == (
        "nobody can say whether Slurm took the job: sbatch: 'welcome' is no number of a job; "
        f"squeue shows it. longhaul resume {files.root.parent.parent} submits it again, to which a "
        "job that was taken gives way"
    )
    assert read_job(files) is None
    assert files.ended.exists()


def test_a_controller_that_answers_too_late_may_have_taken_the_job(
    says: Says, files: AttemptFiles
) -> None:
    says("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(LonghaulError, match=r"nobody can say whether Slurm took the job.*Socket"):
        submit(files)
    says("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(Refused, match=r"sbatch did not take the job: .*invalid partition"):
        submit(files)


def test_a_queue_that_cannot_be_read_is_not_an_empty_one(says: Says) -> None:
    says("squeue", "echo 'This cluster is closed on Monday'")
    assert look_up(["77"])["77"].state is JobState.UNKNOWN
    assert look_up(["77"])["77"].why == (
        "squeue said what cannot be read: 'This cluster is closed on Monday'"
    )
    says("squeue", "echo CLUSTER: alpha")
    assert look_up(["77"])["77"].state is JobState.ENDED


def test_a_script_to_begin_with_that_is_not_there_is_said_before(tmp_path: Path) -> None:
    script = tmp_path / "env.sh"
    launch = config("launch=slurm", f"launch.setup_script={script}").launch
    assert isinstance(launch, SlurmLaunch)
    (problem,) = setup_problems(launch)
    assert (problem.where, problem.fix[:20]) == ("launch.setup_script", "launch.setup_script=")
    assert f"there is no file {script}" in problem.what
    script.write_text("")
    assert not list(setup_problems(launch))


def test_a_job_on_another_cluster_is_asked_for_there(
    says: Says, files: AttemptFiles, tmp_path: Path
) -> None:
    write_job(files, JobRecord("slurm", "77", "alpha"))
    here = RunFiles(tmp_path / "runs" / "other").attempt(1)
    write_job(here, JobRecord("slurm", "77"))
    says(
        "squeue",
        'case "$*" in *--clusters=alpha*) echo CLUSTER: alpha; echo "77|RUNNING|None|N/A|1:00|a1";;'
        ' *) echo "77|PENDING|Priority|N/A|1:00|";; esac',
    )
    there, waits = SlurmBackend().jobs([files, here])
    assert (there.state, waits.state) == (JobState.RUNNING, JobState.PENDING)
    SlurmBackend().stop(files)
    assert len(calls(tmp_path, "scancel")) == 2
    assert all("--clusters=alpha" in line for line in calls(tmp_path, "scancel"))


def test_a_stop_that_slurm_did_not_hear_is_none(
    says: Says, files: AttemptFiles, tmp_path: Path
) -> None:
    write_job(files, JobRecord("slurm", "77"))
    lost = "Unable to contact slurm controller (connect failure)"
    says("squeue", f"echo 'slurm_load_jobs error: {lost}' >&2; exit 1")
    says("scancel", f"echo 'scancel: error: {lost}' >&2; exit 1")
    with pytest.raises(
        Refused, match=r"run cannot be stopped now.*Unable.*longhaul stop /\S+/runs/run o"
    ):
        SlurmBackend().stop(files)
    assert not files.ended.exists()
    says("scancel", "true")  # heard, but nobody says what became of the job
    SlurmBackend().stop(files)
    assert not files.ended.exists()
    for said in ("Invalid job id specified", "Job/step already completing or completed"):
        says("scancel", f"echo 'scancel: error: Kill job error on job id 77: {said}' >&2; exit 1")
        says("squeue", "true")
        SlurmBackend().stop(files)
    assert files.ended.exists()
