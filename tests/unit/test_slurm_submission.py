"""A Slurm that answers strangely, or not at all, is taken at its word and never guessed at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.backends.slurm import SlurmBackend
from launch.base import JobState, Submission
from launch.run.attempts import read_lines_of
from launch.run.job_record import JobRecord, read_job, write_job
from launch.run.run_folder import create, new_attempt
from launch.run.status import close_old_attempts, status_of
from launch.slurm.client import Answer, accepted, state_of
from launch.slurm.preflight import setup_problems
from launch.slurm.queue import look_up
from launch.slurm.resubmit import main as resubmit
from launch.slurm.verdict import JobFacts, begin
from tests.helpers.configs import config
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import ConfigError, Exit, LonghaulError, Refused
from trainer.planning import make_plan
from trainer.records.attempt import ErrorRecord, write_record
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


def test_why_a_job_was_not_taken_is_kept_with_its_attempt(
    says: Says, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    run = create(root, config={"run": {"name": "one"}}, frozen_hash="abc")
    said = "sbatch did not take the job: sbatch: error: you may submit no more jobs"
    says("sbatch", "echo 'sbatch: error: you may submit no more jobs' >&2; exit 1")
    for number in range(1, 6):  # of which none was a try of the run
        files = new_attempt(run)
        assert files.number == number
        files.submission.mkdir()
        files.plan.write_text(json.dumps({"config": {"launch": {"chain": 1}}}))
        with pytest.raises(Refused, match="may submit no more"):
            SlurmBackend().submit(Submission(("sbatch",), {}), run.root, attempt=number)
        close_old_attempts(run)
    assert main(["status", "--json", "--root", str(root)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["state"], found["why"]) == ("failed", said)
    assert main(["status", "--root", str(root)]) == 0
    assert f"one: {said}\n" in capsys.readouterr().out
    assert main(["logs", str(run.root), "--why"]) == 0
    assert capsys.readouterr().out.startswith(f"attempt 5: {said}\n  kind: not taken\n")
    assert {(line["cause"], line["why"]) for line in read_lines_of(run)} == {("refused", said)}
    files = new_attempt(run)
    write_record(files.error, ErrorRecord(1.0, 0, "n1", "ValueError", "row 3", int(Exit.FAILED)))
    close_old_attempts(run)
    assert read_lines_of(run)[-1]["action"] == "again"  # its first failure, not its sixth


def test_a_job_that_was_taken_after_all_owes_nothing_to_what_was_said_before(
    says: Says, tmp_path: Path
) -> None:
    run = create(tmp_path / "runs", config={"run": {"name": "one"}}, frozen_hash="abc")
    files = new_attempt(run)
    files.submission.mkdir()
    files.plan.write_text(json.dumps({"config": {"launch": {"chain": 1}}}))
    says("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(LonghaulError, match="nobody can say whether Slurm took the job"):
        SlurmBackend().submit(Submission(("sbatch",), {}), run.root, attempt=1)
    assert "nobody can say whether Slurm took the job" in status_of(run).why
    assert begin(run, 1, JobFacts("77", nodes=1, restarts=0)) == "run 1"
    assert read_job(files) == JobRecord("slurm", "77")
    assert not files.error.exists()
    assert not files.ended.exists()


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


@pytest.mark.parametrize(
    ("printed", "job", "cluster"),
    [
        ("echo 78", "78", "alpha"),
        ("echo 'use wisely, 12 of you'; echo '78;beta'; echo bye", "78", "beta"),
        ("echo Submitted batch job 78", "", ""),
        ("true", "", ""),
        ("echo 'sbatch: error: Socket timed out' >&2; exit 1", "", ""),
    ],
)
def test_the_job_that_goes_on_after_another_is_read_as_the_first_was(
    says: Says,
    files: AttemptFiles,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    printed: str,
    job: str,
    cluster: str,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "the options of this job are none of the new one's")
    (files.submission / "job.sbatch").write_text("#!/bin/bash\n")
    before = JobRecord("slurm", "77", "alpha", ("79",))
    write_job(files, before)
    says("sbatch", f"env | grep -c SLURM_JOB_ >> {tmp_path}/leaked; {printed}")
    run = files.root.parent.parent
    code = resubmit([str(run), "n1,n2"])
    (call,) = calls(tmp_path, "sbatch")
    assert "--dependency=afterany:77 --exclude=n1,n2 " in call
    assert (tmp_path / "leaked").read_text() == "0\n"
    said = capsys.readouterr()
    if job:
        assert code == Exit.DONE
        assert read_job(files) == JobRecord("slurm", job, cluster)
    else:
        assert code == Exit.FAILED
        assert read_job(files) == before
        assert "no new job could be submitted: sbatch: " in said.out + said.err


def test_a_line_that_names_the_cluster_is_no_state(says: Says) -> None:
    says("squeue", "echo CLUSTER: alpha; echo RUNNING")
    assert state_of("77") == "RUNNING"
    says("squeue", "echo CLUSTER: alpha")
    assert state_of("77") == ""


@pytest.mark.parametrize(
    ("nodes", "cpus", "said"),
    [
        ("4|(null)|64", 1_000_000, "1000000 CPUs for each of 2 ranks, but a node of partition a"),
        ("4|(null)|64", 33, "launch.cpus_per_rank=32"),
        ("4|(null)|64", 32, ""),
        ("4|(null)|64\na*|infinite|1|(null)|66", 33, ""),
        ("4|(null)|64+", 1_000_000, ""),  # how large the others are nobody says
        ("4|(null)|64", 0, ""),
    ],
)
def test_more_cpus_than_a_node_has_are_refused_with_how_many_it_has(
    says: Says, nodes: str, cpus: int, said: str
) -> None:
    says("sinfo", f"echo 'a*|infinite|{nodes}'")
    words = ("launch.gpus=none", "resources.ranks_per_node=2", f"launch.cpus_per_rank={cpus}")
    wanted = make_plan(
        config("launch=slurm", *words),
        attempt=1,
        run_id="r",
        stores=(),
        device="cpu",
        cores=4,
        vocab_size_of_tokenizer=None,
    )
    found = []
    try:
        SlurmBackend().preflight(wanted)
    except ConfigError as e:
        found = [str(one) for one in e.problems]
    assert len(found) == bool(said)
    assert said in "".join(found)


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
