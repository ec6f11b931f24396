"""Several runs as one array of Slurm: each task is the job of one run, as it would be alone.

The array's script (slurm/array.sbatch) holds what all have in common, its directives, and the path
of each run's own script, which its task becomes. What a job itself prints goes to its run's folder,
by links in one hidden folder beside the runs: Slurm knows one name of a file for all tasks.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.slurm.script import directive, directives, filled, section_of
from trainer.errors import Refused
from trainer.plan import RunPlan

MOST = 1000  # tasks of one array: MaxArraySize is 1001 unless a site sets another one
_LINKS = ".arrays"
_OUTPUT = "slurm-%A_%a.out"
_OWN = ("#SBATCH --job-name=", "#SBATCH --output=")


def key_of(plan: RunPlan) -> tuple[str, ...]:
    """Runs with equal keys fit into one array: same directives, same variables."""
    launch = section_of(plan)
    lines = directives(plan, launch, run_folder="")
    shared = [line for line in lines if not line.startswith(_OWN)]
    return (*shared, *sorted(launch.environment), f"at most {launch.array_limit}")


def groups(plans: Sequence[RunPlan]) -> list[list[int]]:
    """Which of them go together, by index, at most MOST each. A chain stays alone."""
    found: dict[tuple[str, ...], list[int]] = {}
    for index, plan in enumerate(plans):
        alone = (str(index),) if section_of(plan).chain > 1 else ()
        found.setdefault((*key_of(plan), *alone), []).append(index)
    return [
        members[start : start + MOST]
        for members in found.values()
        for start in range(0, len(members), MOST)
    ]


def render(plans: Sequence[RunPlan], *, scripts: Sequence[str], name: str) -> str:
    """slurm/array.sbatch for runs of one group. `scripts`: path of each run's own."""
    launch = section_of(plans[0])
    shared = [
        line for line in directives(plans[0], launch, run_folder="") if not line.startswith(_OWN)
    ]
    limit = f"%{launch.array_limit}" if launch.array_limit else ""
    own = [
        directive("job-name", name),
        directive("array", f"0-{len(plans) - 1}{limit}"),
        directive("output", f"{links_folder(plans[0]).replace('%', '%%')}/%a/{_OUTPUT}"),
    ]
    values = {
        "DIRECTIVES": "\n".join([*own, *shared]),
        "JOBS": "\n".join(f"  {shlex.quote(path)}" for path in scripts),
    }
    return filled("array.sbatch", values)


def links_folder(first: RunPlan) -> str:
    """Beside the run folders; of the attempt that the first run begins with."""
    return f"{first.config.run.root}/{_LINKS}/{first.config.run.name}-{first.attempt:04d}"


def link(plans: Sequence[RunPlan]) -> None:
    """Raises: Refused if the links cannot be made."""
    folder = Path(links_folder(plans[0]))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number, plan in enumerate(plans):
            path = folder / str(number)
            path.unlink(missing_ok=True)
            root = Path(plan.config.run.root).resolve() / plan.config.run.name
            path.symlink_to(os.path.relpath(root, folder.resolve()))
    except OSError as e:
        raise Refused(f"{folder}: {e.strerror}; the words of the jobs would go nowhere") from e
