"""Everything about a job that can be known before it is queued, said with what to change.

`sinfo` says what a partition has (more nodes than that are accepted and wait for ever),
`sbatch --test-only` what Slurm itself would refuse. Nothing is written.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launch.slurm.client import ask
from trainer.config.names import nearest
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import ConfigError, Problem, Refused
from trainer.plan import RunPlan

_COLUMNS = "%P|%l|%D|%G|%c"  # partition (* the default), time limit, nodes, GPUs and the like, CPUs
_SLOW_DISK = 20e6  # bytes a second and rank that the slowest save is allowed
_EARLY_S = 60  # Slurm's signal may come so much before its time
# What Slurm complains about -> the setting to change.
_SETTINGS = (
    ("account", "launch.account", "sacctmgr show associations user=$USER shows yours"),
    ("qos", "launch.qos", "sacctmgr show qos shows them"),
    ("partition", "launch.partition", "sinfo shows them"),
    ("reservation", "launch.reservation", "scontrol show reservations shows them"),
    ("feature", "launch.constraint", "sinfo -o %f shows what nodes have"),
    ("generic resource", "launch.gpus", "sinfo -o %G shows kinds of GPUs: launch.gpu_type=..."),
    ("gres", "launch.gpus", "sinfo -o %G shows kinds of GPUs: launch.gpu_type=..."),
    ("time limit", "launch.time_limit_h", "sinfo -o %l shows limits"),
    ("cpu count", "launch.cpus_per_rank", "sinfo -o %c shows cores of a node"),
    ("memory", "launch.memory_gib", "sinfo -o %m shows MiB of a node"),
    ("node name", "launch.nodelist", "sinfo -N shows nodes"),
    ("node configuration", "launch.cpus_per_rank", "no node has all that is asked for; sinfo -Nl"),
    ("node count", "resources.nodes", "sinfo shows nodes"),
)


@dataclass(frozen=True)
class Shape:
    """One kind of node of a partition."""

    partition: str
    limit_s: float | None  # None: no limit
    nodes: int
    gres: str
    is_default: bool = False
    cpus: int | None = None  # of one node; None: nobody says


def refuse_without_slurm() -> None:
    """Raises: Refused."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise Refused(
            f"launch=slurm: {', '.join(missing)} not found on PATH; type this on a login node of "
            "the cluster, or load Slurm's module there"
        )


def check(
    plans: Sequence[RunPlan], launch: SlurmLaunch, *, script: str, env: Mapping[str, str]
) -> str:
    """What Slurm says of when it would start; empty if it says nothing. `plans`: of one script,
    so that they differ in the size of a checkpoint alone.

    Raises: ConfigError with everything that can be told from what the partition has; Refused for
    what Slurm itself refuses.
    """
    plan = max(plans, key=lambda one: one.checkpoint_bytes)
    with ThreadPoolExecutor(1) as beside:  # both questions at once: each may take Slurm a while
        taken = beside.submit(ask, ["sbatch", "--test-only"], env=env, stdin=script)
        problems = [*_time_problems(plan, launch), *_partition_problems(plan, launch)]
        problems += setup_problems(launch)
        answer = taken.result()
    if problems:
        raise ConfigError(problems)
    if answer.code != 0:
        raise Refused(_refusal(answer.why))
    return answer.err.strip()


def setup_problems(launch: SlurmLaunch) -> Iterator[Problem]:
    """The job's first words read it; nodes see the folders that this machine sees."""
    script = launch.setup_script
    if script is not None and not os.access(script, os.R_OK):
        what = f"there is no file {script} that can be read here; the job would end at once"
        yield Problem("launch.setup_script", what, "launch.setup_script=/shared/path/to/env.sh")


def _refusal(why: str) -> str:
    said = why.replace("sbatch: error: ", "").replace("allocation failure: ", "")
    text = f"Slurm would not take this job: {said}"
    lower = said.lower()
    if "array" in lower:
        hint = "fewer runs at once; scontrol show config | grep MaxArraySize shows how many"
        return f"{text}\n     try: {hint}"
    for word, setting, hint in _SETTINGS:
        if word in lower:
            return f"{text}\n     try: {setting}=...; {hint}"
    return text


def _partition_problems(plan: RunPlan, launch: SlurmLaunch) -> Iterator[Problem]:
    # --exact: else nodes of several sizes are one line, with the CPUs of the smallest
    answer = ask(["sinfo", "--all", "--exact", "--noheader", f"--format={_COLUMNS}"])
    if answer.code != 0:
        raise Refused(f"Slurm does not answer: sinfo: {answer.why}")
    shapes = shapes_of(answer.out)
    names = sorted({shape.partition for shape in shapes})
    wanted = launch.partition.split(",") if launch.partition else []
    unknown = [name for name in wanted if name not in names]
    if unknown:
        near = nearest(unknown[0], names)
        what = f"there is no partition {unknown[0]!r}; there is {', '.join(names)}"
        yield Problem("launch.partition", what, f"launch.partition={near or names[0]}")
        return
    asked = [s for s in shapes if (s.partition in wanted if wanted else s.is_default)]
    if not asked:
        return
    where = f"partition {'|'.join(sorted({s.partition for s in asked}))}"
    most = max(_nodes(asked, name) for name in {s.partition for s in asked})
    if plan.config.resources.nodes + launch.spare_nodes > most:
        spare = f" and {launch.spare_nodes} to spare" if launch.spare_nodes else ""
        what = f"{plan.config.resources.nodes} nodes{spare}, but {where} has {most}; it would wait"
        yield Problem("resources.nodes", f"{what} for ever", f"resources.nodes={most}")
    yield from _gpu_problems(plan, launch, asked, where)
    yield from _cpu_problems(plan, launch, asked, where)
    longest = [s.limit_s for s in asked]
    if launch.time_limit_h is not None and None not in longest:
        limit_s = max(s for s in longest if s is not None)
        if launch.time_limit_h * 3600 > limit_s:
            what = f"{launch.time_limit_h:g} h, but {where} gives {limit_s / 3600:.3g} h"
            yield Problem("launch.time_limit_h", what, f"launch.time_limit_h={limit_s / 3600:.3g}")


def _nodes(shapes: list[Shape], partition: str) -> int:
    return sum(s.nodes for s in shapes if s.partition == partition)


def _gpu_problems(
    plan: RunPlan, launch: SlurmLaunch, shapes: list[Shape], where: str
) -> Iterator[Problem]:
    if launch.gpus == "none":
        return
    counts = [gpus_of(shape.gres) for shape in shapes]
    kinds = sorted({kind for count in counts for kind in count if kind})
    if not any(counts):
        what = f"{where} has no GPUs"
        yield Problem("launch.gpus", what, "launch.gpus=none or another launch.partition")
        return
    if launch.gpu_type is not None and launch.gpu_type not in kinds:
        near = nearest(launch.gpu_type, kinds) or (kinds[0] if kinds else None)
        have = f"it has {', '.join(kinds)}" if kinds else "it does not name kinds"
        what = f"{where} has no GPU {launch.gpu_type!r}; {have}"
        yield Problem("launch.gpu_type", what, f"launch.gpu_type={near or 'null'}")
        return
    kind = launch.gpu_type
    most = max(count.get(kind, 0) if kind else sum(count.values()) for count in counts)
    ranks = plan.config.resources.ranks_per_node
    if ranks > most:
        what = f"{ranks} ranks a node, but a node of {where} has {most} GPUs"
        yield Problem("resources.ranks_per_node", what, f"resources.ranks_per_node={most}")


def _cpu_problems(
    plan: RunPlan, launch: SlurmLaunch, shapes: list[Shape], where: str
) -> Iterator[Problem]:
    ranks, known = plan.config.resources.ranks_per_node, [shape.cpus for shape in shapes]
    sizes = [cpus for cpus in known if cpus is not None]
    if len(sizes) < len(known) or launch.cpus_per_rank * ranks <= max(sizes):
        return
    most = max(sizes)
    each = f"{launch.cpus_per_rank} CPUs for each of {ranks} ranks" if ranks > 1 else ""
    what = f"{each or f'{launch.cpus_per_rank} CPUs'}, but a node of {where} has {most}"
    yield Problem("launch.cpus_per_rank", what, f"launch.cpus_per_rank={most // ranks}")


def _time_problems(plan: RunPlan, launch: SlurmLaunch) -> Iterator[Problem]:
    """A save that the end of the job cuts off is none."""
    save_s = plan.checkpoint_bytes / plan.world_size / _SLOW_DISK
    if save_s > launch.signal_lead_s:
        what = (
            f"{launch.signal_lead_s} s are left for the last save, and one of "
            f"{plan.checkpoint_bytes / plan.world_size / 2**30:.3g} GiB a rank may take "
            f"{save_s:.0f} s on a slow disk"
        )
        fix = f"launch.signal_lead_s={min(65535, round(2 * save_s))}"
        yield Problem("launch.signal_lead_s", what, fix)
    needed_s = launch.signal_lead_s + _EARLY_S + 2 * save_s
    if launch.time_limit_h is not None and launch.time_limit_h * 3600 < needed_s:
        what = (
            f"{launch.time_limit_h:g} h are shorter than it takes to load and to save a checkpoint "
            f"(up to {needed_s:.0f} s with launch.signal_lead_s)"
        )
        fix = f"launch.time_limit_h={4 * needed_s / 3600:.2g}"
        yield Problem("launch.time_limit_h", what, fix)


def shapes_of(text: str) -> list[Shape]:
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|", 4)]
        if len(parts) == 5 and parts[2].isdigit():
            name, limit, nodes, gres, cpus = parts
            is_default = name.endswith("*")
            name = name.removesuffix("*")
            size = int(cpus) if cpus.isdigit() else None  # 8+: nodes of several sizes
            found.append(Shape(name, seconds_of(limit), int(nodes), gres, is_default, size))
    return found


def gpus_of(gres: str) -> dict[str, int]:
    """gpu:h100:8(S:0-1),gpu:2 -> {"h100": 8, "": 2}"""
    found: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        # A kind has a letter in it, and may begin with a digit: gpu:3g.40gb:8 is a part of a GPU.
        match = re.fullmatch(r"gpu(?::(\d*[A-Za-z][\w.-]*))?(?::(\d+))?", part.strip())
        if match:
            kind = match[1] or ""
            found[kind] = found.get(kind, 0) + int(match[2] or 1)
    return found


def seconds_of(limit: str) -> float | None:
    """1-12:00:00, 30:00, 90 (minutes); None for infinite or unknown."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+)(?::(\d+))?", limit)
    if match is None:
        return None
    days, *rest = match.groups()
    clock = [int(part) for part in rest if part is not None]
    if days is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
        clock = [*clock, 0, 0][:3]
    elif len(clock) == 1:
        clock = [0, *clock, 0]
    elif len(clock) == 2:
        clock = [0, *clock]
    hours, minutes, seconds = clock
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)
