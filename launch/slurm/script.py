"""slurm/job.sbatch with a plan's values in it. Pure but for reading that file.

A value of a directive stands in double quotes unless it is made of plain characters; sbatch reads
these as a shell would, but expands nothing. A value of the body is quoted for the shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from trainer.config.sections.slurm import SlurmLaunch
from trainer.config.slurm_rules import is_printable
from trainer.errors import Refused
from trainer.plan import RunPlan

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=+@%^~\[\]&|*-]+")
_MARK = re.compile(r"@([A-Z]+)@")
_NAMES = (
    *("account", "partition", "qos", "constraint", "reservation"),
    *("nodelist", "exclude"),
)
_WAIT_S = 60  # for the other ranks, once one has left in order
OUTPUT = "slurm-%j.out"  # under the run folder


def render(plan: RunPlan, *, run_folder: str) -> str:
    """Raises: Refused for a run folder whose name no script can hold."""
    launch = section_of(plan)
    if not is_printable(run_folder):
        raise Refused(f"run.root: {run_folder!r} holds a control character; choose another")
    values = {
        "DIRECTIVES": "\n".join(directives(plan, launch, run_folder=run_folder)),
        "RUN": shlex.quote(run_folder),
        "ATTEMPT": str(plan.attempt),
        "SETUP": "\n".join(_setup(launch)) or "# (no modules, no set-up script)",
        "SRUN": " \\\n    ".join(_srun(plan, launch)),
        "TASK": shlex.join(_interpreter(launch))
        if launch.container.kind != "none"
        else '"$python"',
    }
    return filled("job.sbatch", values)


def section_of(plan: RunPlan) -> SlurmLaunch:
    launch = plan.config.launch
    assert isinstance(launch, SlurmLaunch)
    return launch


def filled(template: str, values: Mapping[str, str]) -> str:
    """A file of slurm/ with its marks replaced."""
    return _MARK.sub(lambda mark: values[mark[1]], _template(template))


@cache
def _template(name: str) -> str:
    installed = Path(__file__).parents[1] / "_slurm"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "slurm"
    return (folder / name).read_text(encoding="utf-8")


def directives(plan: RunPlan, launch: SlurmLaunch, *, run_folder: str) -> list[str]:
    """Lines `#SBATCH --name=value`."""
    options = [*_wanted(plan, launch), *_kept(plan, launch, run_folder)]
    lines = [directive(name, value) for name, value in options]
    for text in launch.extra:
        name, given, value = text.removeprefix("--").partition("=")
        lines.append(directive(name, value if given else None))
    return lines


def directive(name: str, value: str | None) -> str:
    """One line; `value` None: an option that takes none.

    Raises: Refused for a control character: a newline would begin a line of its own.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if not is_printable(value):
        raise Refused(f"--{name}: {value!r} holds a control character")
    if _PLAIN.fullmatch(value):
        return f"#SBATCH --{name}={value}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH --{name}="{escaped}"'


def _wanted(plan: RunPlan, launch: SlurmLaunch) -> Iterator[tuple[str, str | None]]:
    resources = plan.config.resources
    yield "job-name", plan.config.run.name
    yield "nodes", str(resources.nodes + launch.spare_nodes)
    yield "ntasks-per-node", str(resources.ranks_per_node)
    kind = f"{launch.gpu_type}:" if launch.gpu_type else ""
    if launch.gpus == "gpus_per_node":
        yield "gpus-per-node", f"{kind}{resources.ranks_per_node}"
    elif launch.gpus == "gres":
        yield "gres", f"gpu:{kind}{resources.ranks_per_node}"
    if launch.cpus_per_rank:
        yield "cpus-per-task", str(launch.cpus_per_rank)
    if launch.memory_gib is not None:
        yield "mem", f"{round(launch.memory_gib * 1024)}M" if launch.memory_gib else "0"
    if launch.time_limit_h is not None:
        yield "time", time_text(launch.time_limit_h)
    yield from ((name, getattr(launch, name)) for name in _NAMES if getattr(launch, name))
    if launch.exclusive:
        yield "exclusive", None


def _kept(plan: RunPlan, launch: SlurmLaunch, run_folder: str) -> Iterator[tuple[str, str | None]]:
    """How the job ends and comes back."""
    yield "requeue" if launch.requeue else "no-requeue", None
    yield "signal", f"USR1@{launch.signal_lead_s}"
    yield "output", f"{run_folder.replace('%', '%%')}/{OUTPUT}"
    yield "open-mode", "append"
    if launch.mail_user is not None and launch.mail_type:
        yield "mail-user", launch.mail_user
        yield "mail-type", ",".join(launch.mail_type)


def _setup(launch: SlurmLaunch) -> Iterator[str]:
    if launch.modules:  # a shell that is no login shell may not know `module` yet
        yield "[[ $(type -t module) ]] || . /etc/profile"
    for name in launch.modules:
        yield f"module load {shlex.quote(name)} || exit 78"
    if launch.setup_script is not None:
        yield f". {shlex.quote(launch.setup_script)} || exit 78"


def _srun(plan: RunPlan, launch: SlurmLaunch) -> Iterator[str]:
    resources = plan.config.resources
    yield f"--nodes={resources.nodes} --ntasks={plan.world_size}"
    yield f"--ntasks-per-node={resources.ranks_per_node} --distribution=block"
    if launch.cpus_per_rank:  # since 22.05 srun does not take it over from sbatch
        yield f"--cpus-per-task={launch.cpus_per_rank}"
    yield f"--kill-on-bad-exit=1 --wait={_WAIT_S} --label --export=ALL"
    box = launch.container
    if box.kind == "pyxis":
        yield shlex.quote(f"--container-image={box.image}")
        if box.mounts:
            yield shlex.quote(f"--container-mounts={','.join(box.mounts)}")


def _interpreter(launch: SlurmLaunch) -> list[str]:
    """What starts Python in the image, as words."""
    box = launch.container
    if box.kind == "pyxis":
        return [box.python]
    binds = [word for mount in box.mounts for word in ("--bind", mount)]
    gpus = ["--nv"] if launch.gpus != "none" else []
    return ["apptainer", "exec", *gpus, *binds, str(box.image), box.python]


def time_text(hours: float) -> str:
    """As Slurm writes it: D-HH:MM:SS. Rounded up to a minute, Slurm's own unit."""
    minutes = -(-round(hours * 3600) // 60)
    days, rest = divmod(minutes, 24 * 60)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"
