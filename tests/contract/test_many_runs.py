"""A thousand runs on a cluster are looked at with one question to its scheduler."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from launch.run.job_record import JOB_FILE, JobRecord
from trainer.records.run_files import RunFiles

_RUNS = 1000
_SQUEUE = """\
#!/bin/sh
echo asked >> '{folder}/asked'
cat '{folder}/queue'
"""


def test_a_thousand_runs_cost_one_question_and_little_time(tmp_path: Path) -> None:
    root, tools = tmp_path / "runs", tmp_path / "bin"
    tools.mkdir()
    lines = []
    for number in range(_RUNS):
        _make_run(RunFiles(root / f"run-{number:04d}"), job=str(5000 + number))
        state = ("RUNNING|None", "PENDING|Priority")[number % 2]
        lines.append(f"{5000 + number}|{state}|N/A|1:00:00|node1\n")
    (tmp_path / "queue").write_text("".join(lines))
    (tools / "squeue").write_text(_SQUEUE.format(folder=tmp_path))
    (tools / "squeue").chmod(0o755)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "launch", "status", "--root", str(root), "--json"],
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    found = json.loads(done.stdout)
    assert [row["state"] for row in found[:2]] == ["running", "pending"]
    assert len(found) == _RUNS
    assert found[1]["why"].startswith("job 5001 waits: others are before it")
    assert (tmp_path / "asked").read_text() == "asked\n"
    print(f"{cpu_s:.2f} s of CPU")
    assert cpu_s < 10.0  # a process for each of them would take minutes


def _make_run(run: RunFiles, *, job: str) -> None:
    files = run.attempt(1)
    files.submission.mkdir(parents=True)
    config = {"steps": {"total": 300}, "checkpoint": {"keep_last": 2, "keep_every": 0}}
    record = {"run_id": job, "name": run.name, "created": 0.0, "frozen_hash": "", "versions": {}}
    handed_over = asdict(JobRecord("slurm", job))
    for path, value in (  # not write_json, which waits for the disk three thousand times
        (run.run_json, {"format": 1, **record, "config": config}),
        (files.plan, {"config": config, "world_size": 4}),
        (files.root / JOB_FILE, handed_over),
    ):
        path.write_text(json.dumps(value))
    run.metrics.write_text(
        "".join(
            json.dumps({"kind": "step", "step": step, "loss": 2.0, "tokens_per_second": 9.0}) + "\n"
            for step in range(1, 31)
        )
    )
