"""What Slurm's own settings mean for checkpoints, from the text of `scontrol show`.

`show config` has "Name = value" lines since Slurm 2, `show partition` "Name=value" words; names
that a version lacks are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launch.slurm.client import ask
from trainer.health.finding import Finding

_LINE = re.compile(r"^(\w+)\s*= ?(.*)$")
_NONE = ("(null)", "N/A", "")
_SHORT_CREDENTIAL_S = 60


@dataclass(frozen=True)
class Asked:
    """What a run wants of Slurm. `save_s`: what a save and a stop may take; `lead_s`: how long
    before the time limit it is told."""

    save_s: float
    lead_s: float = 0.0
    requeue: bool = True


@dataclass(frozen=True)
class Site:
    """Names in lower case, values as shown."""

    config: Mapping[str, str]
    partition: Mapping[str, str]


def ask_site(partition: str | None) -> Site | str:
    """The settings; a text that says why they cannot be had."""
    config = ask(["scontrol", "show", "config"])
    if config.code != 0:
        return config.why
    partitions = ask(["scontrol", "show", "partition", *([partition] if partition else [])])
    return Site(read_config(config.out), read_partition(partitions.out, partition))


def read_config(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match:
            found[match[1].lower()] = match[2].strip()
    return found


def read_partition(text: str, name: str | None) -> dict[str, str]:
    """The partition of that name, or the default one; empty if it is not shown."""
    for block in re.split(r"(?m)^(?=PartitionName=)", text):  # 25.11 leaves no line between them
        found = {k.lower(): v for k, v in re.findall(r"(\w+)=(\S*)", block)}
        wanted = (
            found.get("default") == "YES" if name is None else found.get("partitionname") == name
        )
        if wanted:
            return found
    return {}


def judge_site(site: Site, asked: Asked) -> Iterator[Finding]:
    if version := _known(site.config, "slurm_version"):
        yield Finding("Slurm", version)
    yield from _kill_wait(site, asked)
    yield from _preemption(site)
    yield from _grace(site, asked)
    yield from _requeue(site, asked)
    yield from _credentials(site)
    yield from _smaller_ones(site)


def _kill_wait(site: Site, asked: Asked) -> Iterator[Finding]:
    seconds = _seconds(site.config, "killwait")
    if seconds is None:
        return
    name = "Slurm KillWait"
    text = f"{seconds:.0f} s from SIGTERM to SIGKILL at the time limit"
    if seconds >= asked.save_s:
        yield Finding(name, f"{text}: enough for a save ({asked.save_s:.0f} s)")
    elif asked.lead_s >= asked.save_s:
        yield Finding(name, f"{text}; the run is told {asked.lead_s:.0f} s before and saves then")
    else:
        fix = f"launch.signal_lead_s={max(60, round(2 * asked.save_s))}"
        yield Finding(name, f"{text}; a save may take {asked.save_s:.0f} s", "problem", fix)


def _preemption(site: Site) -> Iterator[Finding]:
    """A partition's own mode counts; QoS may have others."""
    kind = _known(site.config, "preempttype") or "preempt/none"
    mode = _known(site.partition, "preemptmode") or _known(site.config, "preemptmode") or "OFF"
    words = {word.strip().upper() for word in mode.split(",")}
    name = "Slurm PreemptMode"
    if kind.endswith("none") or words <= {"OFF", "GANG"}:
        yield Finding(name, f"{mode} ({kind}): jobs are not preempted")
    elif "SUSPEND" in words:
        fix = "a partition or QoS with REQUEUE: stopped ranks keep their GPUs, others time out"
        yield Finding(name, f"{mode}: jobs may be stopped in mid-step", "warn", fix)
    elif "CANCEL" in words:
        fix = "a partition or QoS with REQUEUE; else, afterwards: longhaul resume RUN"
        yield Finding(name, f"{mode}: a preempted job does not come back", "warn", fix)
    else:
        yield Finding(name, f"{mode}: a preempted job queues again, and its run goes on")


def _grace(site: Site, asked: Asked) -> Iterator[Finding]:
    """From the notice of a preemption to SIGKILL; without grace, KillWait is all there is."""
    grace = _seconds(site.partition, "gracetime")
    kind = _known(site.config, "preempttype") or "preempt/none"
    if grace is None or kind.endswith("none"):
        return
    wait = _seconds(site.config, "killwait") or 0.0
    text = f"{grace:.0f} s of grace, then {wait:.0f} s of KillWait, from a preemption to its end"
    if grace + wait >= asked.save_s:
        yield Finding("Slurm GraceTime", f"{text}: enough for a save")
        return
    fix = "a smaller steps.save_every, or checkpoint.background: what is not saved by then is lost"
    what = f"{text}; a save may take {asked.save_s:.0f} s"
    yield Finding("Slurm GraceTime", what, "warn", fix)


def _requeue(site: Site, asked: Asked) -> Iterator[Finding]:
    value = _known(site.config, "jobrequeue")
    if value is not None:
        own = "--requeue" if asked.requeue else "--no-requeue"
        text = f"{value}: for jobs that do not say; yours says {own}"
        if asked.requeue:
            yield Finding("Slurm JobRequeue", text)
        else:
            fix = "launch.requeue=true, or launch.chain=3 where the site forbids it"
            what = f"{text}: it does not come back after a preemption or a lost node"
            yield Finding("Slurm JobRequeue", what, "warn", fix)
    most = _known(site.config, "maxbatchrequeue")
    if most is not None and most.isdecimal():
        what = f"{most}: after so many failed starts in a row the job is held (scontrol release)"
        yield Finding("Slurm MaxBatchRequeue", what)


def _credentials(site: Site) -> Iterator[Finding]:
    """A node that comes back with an expired credential refuses the steps of a requeued job."""
    found = re.search(r"cred_expire=(\d+)", site.config.get("authinfo", ""))
    if found is None:
        return
    seconds = int(found[1])
    if seconds < _SHORT_CREDENTIAL_S:
        fix = "ask the site for the default, 120"
        what = f"{seconds} s: starts on a node that has just come back may be refused"
        yield Finding("Slurm cred_expire", what, "warn", fix)
    else:
        yield Finding("Slurm cred_expire", f"{seconds} s")


def _smaller_ones(site: Site) -> Iterator[Finding]:
    if (seconds := _seconds(site.config, "slurmdtimeout")) is not None:
        what = f"{seconds:.0f} s until a lost node is noticed and its job queues again"
        yield Finding("Slurm SlurmdTimeout", what)
    if (limit := _known(site.config, "maxarraysize")) is not None and limit.isdecimal():
        yield Finding("Slurm MaxArraySize", f"{limit}: larger arrays must be cut up")
    if (longest := _known(site.partition, "maxtime")) is not None:
        yield Finding("Slurm MaxTime", f"{longest} in {site.partition['partitionname']}")


def _known(values: Mapping[str, str], name: str) -> str | None:
    value = values.get(name)
    return None if value is None or value in _NONE else value


def _seconds(values: Mapping[str, str], name: str) -> float | None:
    """ "30 sec", "2 min", "30" or "00:02:00"; None: not shown."""
    value = _known(values, name) or ""
    if match := re.fullmatch(r"(\d+)\s*(sec|min)?", value):
        return float(match[1]) * (60 if match[2] == "min" else 1)
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", value):
        return float(int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]))
    return None
