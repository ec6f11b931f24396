"""Everything about a job that can be known before it is queued, said with what to change."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from launch.slurm.client import ask
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan


def refuse_without_slurm() -> None:
    """Raises: Refused."""
    missing = [name for name in ("sbatch", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise Refused(
            f"launch=slurm: {', '.join(missing)} not found on PATH; type this on a login node of "
            "the cluster, or load Slurm's module there"
        )


def check(plan: RunPlan, launch: SlurmLaunch, *, script: str, env: Mapping[str, str]) -> str:
    """What Slurm says of when it would start. Raises: Refused, ConfigError."""
    answer = ask(["sbatch", "--test-only"], env=env, stdin=script)
    if answer.code != 0:
        raise Refused(f"Slurm would not take this job: {answer.why}")
    return answer.err.strip()
