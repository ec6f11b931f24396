"""Several machines of one job. SkyPilot runs the same command on each, and they reach each other by
ssh: the first one drives, on the others the command ends at once. With Ray it runs on the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.cloud.tool import ask
from trainer.errors import Refused

_RANK, _ADDRESSES = "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"
_TIMEOUT_S = 60.0
_WAIT_NODES_S = 1800.0  # rented machines come one after another


def is_first(env: Mapping[str, str]) -> bool:
    """Whether this machine drives; of one machine it does."""
    return env.get(_RANK, "0") == "0"


def settings_of_peers(given: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """The section `launch` for these machines: conf/launch/ssh.yaml or ray.yaml, with `given` and
    what is known here.

    Raises: Refused if nobody says where the others are, or one does not answer.
    """
    from launch.compose import compose

    section: dict[str, Any] = compose([f"launch={given['kind']}"]).values["launch"]
    names = [*section["environment"], *given.get("environment", ())]
    section |= {**given, "environment": names, "foreground": True}
    if given["kind"] == "ssh":
        return section | {"hosts": _hosts(env)}
    return section | {"address": "auto", "auth": "token", "wait_nodes_s": _WAIT_NODES_S}


def _hosts(env: Mapping[str, str]) -> list[str]:
    hosts = env.get(_ADDRESSES, "").split()
    if not hosts:
        raise Refused(f"several machines, but no {_ADDRESSES} says where the others are")
    _know(hosts)
    return hosts


def _know(hosts: list[str]) -> None:
    """Take down the machines' keys: they were rented a minute ago, over the same network."""
    answer = ask(["ssh-keyscan", "-T", "20", *hosts], timeout_s=_TIMEOUT_S)
    silent = [host for host in hosts if f"{host} " not in answer.out]
    if silent:
        raise Refused(f"no ssh server answers on {', '.join(silent)}: {answer.why}")
    folder = Path("~/.ssh").expanduser()
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "known_hosts").open("a", encoding="utf-8") as file:
        file.write(answer.out)
