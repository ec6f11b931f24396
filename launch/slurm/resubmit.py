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

from launch.job_record import JobRecord, read_job, write_job
from launch.reactions import say
from launch.run_folder import attempts, locked
from launch.slurm.client import ask
from trainer.errors import Exit
from trainer.records.run_files import RunFiles

SCRIPT = "submission/job.sbatch"  # under the attempt's folder


def main(argv: Sequence[str] | None = None) -> int:
    folder, *rest = sys.argv[1:] if argv is None else argv
    run, job = RunFiles(Path(folder)), os.environ["SLURM_JOB_ID"]
    with locked(run):
        newest = attempts(run)[-1]
        options = [f"--dependency=afterany:{job}", *(f"--exclude={nodes}" for nodes in rest[:1])]
        script = next(
            f.root / SCRIPT for f in reversed(attempts(run)) if (f.root / SCRIPT).exists()
        )
        # Without the variables that this job set for itself: they would be options of the new one.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        for name in ("SLURM_CONF", "SLURM_CLUSTERS"):
            if name in os.environ:
                env[name] = os.environ[name]
        answer = ask(["sbatch", "--parsable", *options, str(script), sys.executable], env=env)
        if answer.code != 0:
            say(f"no new job could be submitted: {answer.why}")
            return Exit.FAILED
        new = answer.out.strip().partition(";")[0]
        record = read_job(newest) or JobRecord("slurm", job)
        write_job(newest, replace(record, job=new, chain=()))
    say(f"job {new} goes on after this one")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
