"""A new job goes on where this one ends: where Slurm would not requeue it, or not onto these nodes.

    python -m launch.slurm.resubmit RUN_FOLDER [NODES]

Called by the batch script. Standard library only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.node.reactions import say
from launch.run.job_record import JobRecord, read_job, write_job
from launch.run.run_folder import attempts, locked
from launch.slurm.client import Answer, accepted, ask
from launch.slurm.place import job_of
from trainer.errors import Exit
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles

SCRIPT = "submission/job.sbatch"  # under the attempt's folder


def script_of(run: RunFiles) -> Path | None:
    """The script of the newest attempt that was submitted; those that followed by themselves have
    none of their own."""
    scripts = (files.root / SCRIPT for files in reversed(attempts(run)))
    return next((path for path in scripts if path.exists()), None)


def would_take(run: RunFiles, nodes: Sequence[str]) -> bool:
    """Whether Slurm has enough nodes without these."""
    return _sbatch(run, ["--test-only"], nodes).code == 0


def main(argv: Sequence[str] | None = None) -> int:
    folder, *rest = sys.argv[1:] if argv is None else argv
    run, job = RunFiles(Path(folder)), job_of(os.environ)
    nodes = rest[0].split(",") if rest else []
    with locked(run):
        newest = attempts(run)[-1]
        answer = _sbatch(run, ["--parsable", f"--dependency=afterany:{job}"], nodes)
        new = accepted(answer)
        if new is None:
            said = answer.why if answer.code else f"{answer.out.strip()[:100]!r} is no number"
            say(f"no new job could be submitted: sbatch: {said}")
            return Exit.FAILED
        number, cluster = new
        record = read_job(newest) or JobRecord("slurm", job)
        cluster = cluster or record.cluster
        write_job(newest, replace(record, job=number, cluster=cluster, chain=()))
    say(f"job {number} goes on after this one")
    return Exit.DONE


def _sbatch(run: RunFiles, options: Sequence[str], without: Sequence[str]) -> Answer:
    """Of the script that this job was made from."""
    script = script_of(run)
    if script is None:
        return Answer(None, err=f"{run.root} has no script of a job any more")
    left_out = [*_excluded(attempts(run)[-1].plan), *without]
    exclude = [f"--exclude={','.join(left_out)}"] if left_out else []
    # Without the variables that this job set for itself: they would be options of the new one.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    kept = {k: os.environ[k] for k in ("SLURM_CONF", "SLURM_CLUSTERS") if k in os.environ}
    argv = ["sbatch", "--export=ALL", *options, *exclude, str(script), sys.executable]
    return ask(argv, env=env | kept)


def _excluded(plan: Path) -> list[str]:
    """What the settings exclude: the command line would replace it."""
    try:
        named = read_json(plan)["config"]["launch"]["exclude"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [named] if named else []


if __name__ == "__main__":
    sys.exit(main())
