"""What a rented machine is given: the run's identity and settings, in one environment variable.

The machine makes its own plan of them (its cores and devices are the ones that count). Every
character that some layer on the way could take for something else (a shell, Kubernetes with its
`$(NAME)`, a template) is written as a JSON escape, so that all of them may read it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from launch.cloud.names import job_name
from trainer.config.sections.cloud import CloudLaunch, KubeRayLaunch, SkyLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan

VARIABLE = "LONGHAUL_JOB"
_INERT = re.compile(r"[^A-Za-z0-9{}\[\]\",:.\\/_+ -]")
_LONGEST = 100_000  # the kernel gives one variable, or one word of a command, 128 KiB


@dataclass(frozen=True)
class Carried:
    """`submission`: names one act of handing over, however often its machines come back."""

    run_id: str
    submission: str
    version: str
    config: dict[str, Any]


def carried_by(plan: RunPlan) -> Carried:
    """The settings as they are there: ranks are started on the machine itself; on several by the
    first one, over ssh, or by the head, through Ray. peers.py adds what is known only there."""
    launch = plan.config.launch
    assert isinstance(launch, CloudLaunch)
    config = plan.config.model_dump(mode="json")
    config["launch"] = {"kind": "local", "grace_s": launch.grace_s}
    if plan.config.resources.nodes > 1:
        # What was passed to the first machine goes on to the others.
        kind = "ssh" if isinstance(launch, SkyLaunch) else "ray"
        config["launch"] |= {"kind": kind, "environment": _names(launch)}
    config["run"]["root"] = launch.run_root
    config["resources"]["device"] = plan.device  # a machine without its GPU is an error there
    config["resume"]["mode"] = "auto"  # what was asked has been judged where it was asked
    return Carried(plan.run_id, job_name(plan), metadata.version("longhaul"), config)


def _names(launch: CloudLaunch) -> list[str]:
    return list(launch.environment) if isinstance(launch, SkyLaunch | KubeRayLaunch) else []


def carried_text(carried: Carried) -> str:
    """Raises: Refused if it is longer than an environment variable can be, or than the one word
    of a command in which `ray job submit` gets it: JSON in JSON in quotes."""
    plain = json.dumps(asdict(carried), sort_keys=True, separators=(",", ":"))
    text = _INERT.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)
    length = len(text) + 3 * sum(text.count(each) for each in '"\\')
    if length > _LONGEST:
        what = f"the settings are {length:,} characters; {_LONGEST:,} can be sent to a machine"
        raise Refused(f"{what}: move long values into files there")
    return text


def read_carried(text: str) -> Carried:
    """Raises: Refused if it is not what `carried_text` makes."""
    try:
        return Carried(**json.loads(text))
    except (ValueError, TypeError) as e:
        raise Refused(f"{VARIABLE} is not what a submission writes ({e})") from e
