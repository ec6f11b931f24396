"""What Slurm's own settings mean for checkpoints, from the text of `scontrol show config`.

The text has had "Name = value" lines since Slurm 2; names that a version lacks are passed over.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.health.finding import Finding

_PATIENCE_S = 20.0
_LINE = re.compile(r"^(\w+)\s*= ?(.*)$")
_NONE = ("(null)", "N/A", "")


@dataclass(frozen=True)
class Asked:
    """What a run wants of Slurm. `lead_s`: seconds before the time limit at which it is told."""

    save_s: float  # a save and a stop may take so long
    lead_s: float = 0.0
    requeue: bool = True
    nodes: int = 1


def show_config(*, program: str = "scontrol") -> dict[str, str] | str | None:
    """The settings; a text that says why not; None where there is no Slurm."""
    where = shutil.which(program)
    if where is None:
        return None
    try:
        done = subprocess.run(
            [where, "show", "config"], capture_output=True, text=True, timeout=_PATIENCE_S,
            check=False, env=None,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"scontrol show config: no answer within {_PATIENCE_S:.0f} s"
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return f"scontrol show config: {said[-1] if said else f'rc {done.returncode}'}"
    return read_config(done.stdout)


def read_config(text: str) -> dict[str, str]:
    """Name -> value, as shown; names in lower case."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match:
            found[match[1].lower()] = match[2].strip()
    return found


def judge_config(config: Mapping[str, str], asked: Asked) -> Iterator[Finding]:
    if version := _known(config, "slurm_version"):
        yield Finding("Slurm", version)
    yield from _kill_wait(config, asked)
    yield from _preemption(config, asked)
    yield from _requeue(config, asked)
    yield from _credentials(config)
    yield from _smaller_ones(config, asked)


def _kill_wait(config: Mapping[str, str], asked: Asked) -> Iterator[Finding]:
    seconds = _seconds(config, "killwait")
    if seconds is None:
        return
    text = f"{seconds:.0f} s from SIGTERM to SIGKILL at the time limit and at scancel"
    if seconds >= asked.save_s:
        yield Finding("Slurm KillWait", f"{text}: enough for a save ({asked.save_s:.0f} s)")
    elif asked.lead_s >= asked.save_s:
        what = (
            f"{text}; a run is told {asked.lead_s:.0f} s earlier (--signal) and has saved by then"
        )
        yield Finding("Slurm KillWait", what)
    else:
        fix = f"launch.signal_lead_s={max(60, round(2 * asked.save_s))}, or `longhaul stop` in time"
        yield Finding("Slurm KillWait", f"{text}; a save takes {asked.save_s:.0f} s", "warn", fix)


def _preemption(config: Mapping[str, str], asked: Asked) -> Iterator[Finding]:
    """GraceTime is a partition's and a QoS's; since 22 some versions show the global default."""
    mode = _known(config, "preemptmode") or "OFF"
    kind = _known(config, "preempttype") or ""
    words = {word.strip().upper() for word in mode.split(",")}
    name = "Slurm PreemptMode"
    if words <= {"OFF"} or kind.endswith("none"):
        yield Finding(name, f"{mode}: jobs are not preempted")
        return
    if "SUSPEND" in words:
        fix = (
            "a partition without SUSPEND: stopped ranks keep their GPUs' memory, and peers time out"
        )
        yield Finding(name, f"{mode}: jobs may be stopped in mid-step", "warn", fix)
    elif "CANCEL" in words:
        fix = "a QoS with PreemptMode=REQUEUE; else resume by hand: longhaul resume RUN"
        yield Finding(name, f"{mode}: a preempted job does not come back", "warn", fix)
    else:
        what = f"{mode}: a preempted job comes back under its own id, and the run goes on"
        yield Finding(name, what)
    grace = _seconds(config, "gracetime")
    if grace is not None and grace < asked.save_s:
        what = (
            f"{grace:.0f} s from a preemption's notice to its end; a save takes {asked.save_s:.0f}"
        )
        fix = "a smaller steps.save_every: what is not saved by then is lost"
        yield Finding("Slurm GraceTime", what, "warn", fix)
    elif grace is not None:
        yield Finding("Slurm GraceTime", f"{grace:.0f} s: enough for a save")
    else:
        what = "of partitions and QoS: sacctmgr show qos format=name,gracetime; 0 means KillWait"
        yield Finding("Slurm GraceTime", what)


def _requeue(config: Mapping[str, str], asked: Asked) -> Iterator[Finding]:
    value = _known(config, "jobrequeue")
    if value is None:
        return
    if value == "1":
        yield Finding("Slurm JobRequeue", "1: jobs come back after preemption and lost nodes")
    elif asked.requeue:
        yield Finding(
            "Slurm JobRequeue", f"{value}: asked for per job (--requeue), so it comes back"
        )
    else:
        fix = "launch.requeue=true"
        yield Finding("Slurm JobRequeue", f"{value}: a job does not come back", "warn", fix)
    most = _known(config, "maxbatchrequeue")
    if most is not None and most.isdecimal():
        what = f"{most}: after so many failed starts Slurm holds the job (scontrol release ID)"
        yield Finding("Slurm MaxBatchRequeue", what)


def _credentials(config: Mapping[str, str]) -> Iterator[Finding]:
    """A node that comes back with an old credential refuses its steps."""
    for name in ("authinfo", "credparameters"):
        found = re.search(r"cred_expire=(\d+)", config.get(name, ""))
        if found:
            seconds = int(found[1])
            text = f"{seconds} s (default 120)"
            if seconds < 60:
                fix = (
                    "ask for 120: a requeue right after a node returns may be refused until it ends"
                )
                yield Finding("Slurm cred_expire", text, "warn", fix)
            else:
                yield Finding("Slurm cred_expire", text)


def _smaller_ones(config: Mapping[str, str], asked: Asked) -> Iterator[Finding]:
    if (seconds := _seconds(config, "slurmdtimeout")) is not None:
        what = f"{seconds:.0f} s until a lost node is noticed and the job requeued"
        yield Finding("Slurm SlurmdTimeout", what)
    if (limit := _known(config, "maxarraysize")) is not None and limit.isdecimal():
        yield Finding(
            "Slurm MaxArraySize", f"{limit}: sweeps above {int(limit) - 1} runs are cut up"
        )
    memlock = config.get("propagateresourcelimits", "")
    if memlock.upper() == "ALL" and asked.nodes > 1:
        what = "ALL: the limits of the shell that submits become those of the ranks"
        yield Finding("Slurm PropagateResourceLimits", what)


def _known(config: Mapping[str, str], name: str) -> str | None:
    value = config.get(name)
    return None if value is None or value in _NONE else value


def _seconds(config: Mapping[str, str], name: str) -> float | None:
    """ "30 sec" or "00:02:00" or "2 min"; None: not shown."""
    value = _known(config, name)
    if value is None:
        return None
    if match := re.fullmatch(r"(\d+)\s*(sec|min)?\w*", value):
        return float(match[1]) * (60 if match[2] == "min" else 1)
    if match := re.fullmatch(r"(\d+):(\d\d):(\d\d)", value):
        return float(int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]))
    return None
