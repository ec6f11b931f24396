"""What can be said of a Slurm job before Slurm is asked: values that could be taken for something
else, times that leave no room for a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import Problem

_WORDS = ("account", "partition", "qos", "constraint", "reservation", "gpu_type", "mail_user")
_HOSTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,\[\]-]*")
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_EARLY_S = 60  # Slurm's signal may come so much before its time
# What the plan or another setting decides; given twice, one of them would win unseen.
OWNED = {
    "account": "launch.account",
    "array": "",
    "chdir": "",
    "constraint": "launch.constraint",
    "container": "launch.container.kind",
    "container-image": "launch.container.image",
    "cpus-per-gpu": "launch.cpus_per_rank",
    "cpus-per-task": "launch.cpus_per_rank",
    "dependency": "launch.chain",
    "error": "",
    "exclude": "launch.exclude",
    "exclusive": "launch.exclusive",
    "export": "launch.environment",
    "export-file": "launch.environment",
    "gpus": "resources.ranks_per_node",
    "gpus-per-node": "resources.ranks_per_node",
    "gpus-per-task": "resources.ranks_per_node",
    "gres": "launch.gpus",
    "job-name": "run.name",
    "mail-type": "launch.mail_type",
    "mail-user": "launch.mail_user",
    "mem": "launch.memory_gib",
    "no-requeue": "launch.requeue",
    "nodelist": "launch.nodelist",
    "nodes": "resources.nodes",
    "ntasks": "resources.ranks_per_node",
    "ntasks-per-node": "resources.ranks_per_node",
    "open-mode": "",
    "output": "",
    "parsable": "",
    "partition": "launch.partition",
    "qos": "launch.qos",
    "requeue": "launch.requeue",
    "reservation": "launch.reservation",
    "signal": "launch.signal_lead_s",
    "test-only": "launch.test_only",
    "time": "launch.time_limit_h",
    "wait": "",
    "wrap": "",
}


def slurm_problems(config: Config) -> Iterator[Problem]:
    launch = config.launch
    if not isinstance(launch, SlurmLaunch):
        return
    yield from _word_problems(launch)
    yield from _pattern_problems(launch)
    yield from _container_problems(launch)
    for i, text in enumerate(launch.extra):
        yield from _extra_problems(f"launch.extra.{i}", text)
    yield from _time_problems(config, launch)


def is_printable(text: str) -> bool:
    """No control characters: a newline would begin another line of the script."""
    return all(c.isprintable() for c in text)


def _word_problems(launch: SlurmLaunch) -> Iterator[Problem]:
    named = [(f"launch.{name}", getattr(launch, name)) for name in _WORDS]
    named += [(f"launch.modules.{i}", text) for i, text in enumerate(launch.modules)]
    named += [(f"launch.container.mounts.{i}", m) for i, m in enumerate(launch.container.mounts)]
    named += [
        ("launch.setup_script", launch.setup_script),
        ("launch.container.image", launch.container.image),
        ("launch.container.python", launch.container.python),
    ]
    for where, text in named:
        if text is None:
            continue
        if not text.strip():
            yield Problem(where, "is empty; null means that it is not asked for", f"{where}=null")
        elif not is_printable(text):
            yield Problem(where, f"{text!r} holds a control character", "")
        elif text.startswith("-"):
            yield Problem(where, f"{text!r} would be read as an option", "")


def _pattern_problems(launch: SlurmLaunch) -> Iterator[Problem]:
    for name in ("nodelist", "exclude"):
        text = getattr(launch, name)
        if text is not None and not _HOSTS.fullmatch(text):
            what = f"{text!r} is no list of nodes"
            yield Problem(f"launch.{name}", what, f"launch.{name}=node[01-04,07]")
    if launch.gpu_type is not None and not _GPU.fullmatch(launch.gpu_type):
        what = f"{launch.gpu_type!r} is no kind of GPU; sinfo -o %G shows them"
        yield Problem("launch.gpu_type", what, "launch.gpu_type=h100")
    if launch.mail_user is not None and re.search(r"[\s,;|&]", launch.mail_user):
        what = f"{launch.mail_user!r} is no address"
        yield Problem("launch.mail_user", what, "launch.mail_user=me@example.org")
    for i, name in enumerate(launch.environment):
        if not _VARIABLE.fullmatch(name):
            what = f"{name!r} is no name of a variable; values stay in your environment"
            yield Problem(f"launch.environment.{i}", what, "")


def _container_problems(launch: SlurmLaunch) -> Iterator[Problem]:
    box = launch.container
    if box.kind != "none" and box.image is None:
        what = f"{box.kind} needs an image to start"
        yield Problem("launch.container.image", what, "launch.container.image=/images/mine.sqsh")
    for i, mount in enumerate(box.mounts):
        source, _, target = mount.partition(":")
        if not (source.startswith("/") and target.startswith("/")) or "," in mount:
            what = f"{mount!r} is not SOURCE:TARGET with two absolute paths"
            yield Problem(f"launch.container.mounts.{i}", what, "/data:/data")


def _extra_problems(where: str, text: str) -> Iterator[Problem]:
    if not is_printable(text):
        yield Problem(where, f"{text!r} holds a control character", "one option of sbatch each")
    elif not _OPTION.fullmatch(text):
        what = f"{text!r} is no option of sbatch in its long form"
        yield Problem(where, what, "--switches=1")
    else:
        name = text.removeprefix("--").partition("=")[0]
        owners = [own for own in OWNED if own == name or (len(name) > 2 and own.startswith(name))]
        if owners:
            setting = OWNED[owners[0]]
            what = f"--{owners[0]} is decided by {setting or 'longhaul itself'}"
            yield Problem(where, what, f"{setting}=..." if setting else "leave it out")


def _time_problems(config: Config, launch: SlurmLaunch) -> Iterator[Problem]:
    if launch.time_limit_h is None:
        return
    limit_s, lead_s = launch.time_limit_h * 3600, launch.signal_lead_s
    if limit_s <= lead_s + _EARLY_S:
        what = (
            f"{limit_s:.0f} s are over before training begins: the run saves and stops "
            f"launch.signal_lead_s ({lead_s} s) before the end, and Slurm may say so "
            f"{_EARLY_S} s early"
        )
        fix = f"launch.time_limit_h={(lead_s * 4 + _EARLY_S) / 3600:.2g}"
        yield Problem("launch.time_limit_h", what, fix)
