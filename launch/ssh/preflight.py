"""What must hold on the hosts before anything is written: all of it is asked, all of it is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Literal

from launch.driving.answers import existing, mark_in, other_versions, table
from launch.ssh.hosts import hosts_of
from launch.ssh.survey import Answer, Asked, ask
from trainer.config.schema import Config
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import ConfigError, Problem, Refused
from trainer.plan import RunPlan

_PACKAGES = ("longhaul", "torch", "deepspeed", "transformers")
_SEEN_WITHIN_S = 10.0  # what one host writes, on another; a network file system caches names
_SKEW_S = 2.0  # clocks that differ by more are told: logs and records of hosts cannot be compared


@cache
def survey(launch: SshLaunch, folders: tuple[str, ...], port: int) -> tuple[Answer, ...]:
    """Asked once a command. `folders`: those that all hosts must see, as they are named here.

    Raises: ConfigError if no host is named, or a key that is not here; Refused if there is no ssh
    here.
    """
    hosts = hosts_of(launch)
    _refuse_without_key(launch)
    if shutil.which("ssh") is None:
        raise Refused("launch=ssh: there is no ssh on this machine (OpenSSH's client)")
    with ExitStack() as stack:
        marked = {folder: stack.enter_context(mark_in(Path(folder))) for folder in folders}
        asked = Asked(marked, wait_s=_SEEN_WITHIN_S, port=port, packages=_PACKAGES)
        return tuple(ask(launch, hosts, asked, sockets=None))


def _refuse_without_key(launch: SshLaunch) -> None:
    """ssh would only say that nobody is let in. With its public half an agent may hold the key."""
    path = launch.identity_file
    if path is None or "%" in path:  # which ssh fills in
        return
    if not any(Path(f"{path}{end}").expanduser().is_file() for end in ("", ".pub")):
        what = f"there is no file {path}"
        raise ConfigError([Problem("launch.identity_file", what, "launch.identity_file=null")])


def survey_for(config: Config) -> tuple[Answer, ...]:
    assert isinstance(config.launch, SshLaunch)
    roots = (config.run.root, config.data.store_root)
    folders = tuple(dict.fromkeys(str(existing(Path(root))) for root in roots))
    return survey(config.launch, folders, config.resources.rendezvous_port)


def device_there(config: Config) -> Literal["cpu", "cuda"] | None:
    """What `resources.device=auto` means on the hosts; None if none answers."""
    gpus = [int(each.said["gpus"]) for each in survey_for(config) if each.said]
    return ("cuda" if gpus[0] else "cpu") if gpus else None


def cores_there(config: Config) -> int | None:
    """Of the smallest host; None if none answers."""
    cores = [int(each.said["cores"]) for each in survey_for(config) if each.said]
    return min(cores, default=None)


def check(plan: RunPlan) -> list[str]:
    """What is worth telling about hosts that will do, a line each.

    Raises: ConfigError for more nodes than hosts; Refused with a table of every problem of every
    host if too few are left without one.
    """
    config = plan.config
    launch, resources = config.launch, config.resources
    assert isinstance(launch, SshLaunch)
    hosts = hosts_of(launch)
    if resources.nodes > len(hosts):
        what = f"{resources.nodes} machines, but {len(hosts)} hosts are named"
        raise ConfigError([Problem("resources.nodes", what, f"resources.nodes={len(hosts)}")])
    answers = survey_for(config)
    twice = _named_twice(answers)
    problems = {e.host: [*problems_of(e, plan), *twice.get(e.host, [])] for e in answers}
    bad = {host: found for host, found in problems.items() if found}
    least = resources.min_nodes or resources.nodes
    if len(hosts) - len(bad) < least:
        raise Refused(table(bad, good=len(hosts) - len(bad), least=least, noun="hosts"))
    told = [f"{host} is left out: {what}" for host, found in bad.items() for what, _ in found[:1]]
    return [*told, *_oddities(answers)]


def problems_of(answer: Answer, plan: RunPlan) -> Iterator[tuple[str, str]]:
    """(what is wrong with a host, what to type)."""
    if not answer.said:
        yield answer.problem, answer.fix
        return
    said, resources = answer.said, plan.config.resources
    yield from other_versions(said["python"], said["versions"])
    for folder, seen in said["folders"].items():
        if not seen["exists"]:
            yield f"it has no folder {folder}", "run.root and data.store_root in a shared folder"
        elif not seen["seen"]:
            what = f"its {folder} is another folder than here (a file of ours is not seen there)"
            yield what, "run.root and data.store_root in a folder that all hosts share"
        elif not seen["writable"]:
            yield f"{folder} cannot be written there", "another launch.user, or the folder's mode"
    if plan.device == "cuda" and int(said["gpus"]) < resources.ranks_per_node:
        what = f"{resources.ranks_per_node} ranks a node, but it has {said['gpus']} CUDA devices"
        fix = f"resources.ranks_per_node={said['gpus']}" if said["gpus"] else "resources.device=cpu"
        yield what, fix
    yield from _unfit_address(said["address"], plan)
    if not said["address"] and (interface := plan.config.launch.interface):  # type: ignore[union-attr]
        yield f"it has no address on {interface}", "launch.interface=null"
    elif not said["address"]:
        yield "ssh names no address of it", "launch.interface=eth0"
    elif said["port_problem"]:
        what = f"port {resources.rendezvous_port} cannot be used ({said['port_problem']})"
        yield what, "resources.rendezvous_port=0"


def _named_twice(answers: Sequence[Answer]) -> dict[str, list[tuple[str, str]]]:
    """Hosts at the address of one before them: their ranks would take the same GPUs."""
    first: dict[str, str] = {}
    found = {}
    for each in answers:
        address = str(each.said.get("address", ""))
        if address and first.setdefault(address, each.host) != each.host:
            what = f"it is the machine that {first[address]} names ({address})"
            found[each.host] = [(what, "each machine once; or launch.interface=..., if it is none")]
    return found


def _unfit_address(address: str, plan: RunPlan) -> Iterator[tuple[str, str]]:
    """For ranks of other hosts to come to."""
    if ":" in address:
        fix = """'launch.options=["AddressFamily=inet"]', or launch.interface=..."""
        yield f"ssh comes in by IPv6 ({address}), over which ranks do not meet", fix
    elif address.startswith("127.") and plan.config.resources.nodes > 1:
        what = f"ssh comes in by {address}, where no other host can reach it"
        yield what, "its name in the network in launch.hosts, or launch.interface=..."


def _oddities(answers: Sequence[Answer]) -> Iterator[str]:
    for each in answers:
        if each.said and abs(each.skew_s) > max(_SKEW_S, each.delay_s):
            side = "ahead of" if each.skew_s > 0 else "behind"
            yield f"the clock of {each.host} is {abs(each.skew_s):.1f} s {side} this one"
        for folder, seen in each.said["folders"].items() if each.said else ():
            if seen.get("s", 0.0) > 1.0:
                yield f"a new file in {folder} is seen on {each.host} after {seen['s']:.1f} s"
