"""What must hold on a Ray cluster before anything is written: all of it is asked and told."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from launch.driving.answers import existing, mark_in, other_versions, table
from launch.raying.cluster import bundle_of, environment_for_ray
from launch.raying.jobs import JobsApi, job_command
from trainer.config.schema import Config
from trainer.config.sections.ray import RayLaunch
from trainer.errors import ConfigError, Problem, Refused
from trainer.plan import RunPlan

_PACKAGES = ("longhaul", "ray", "torch", "deepspeed", "transformers")
_SCRIPT = Path(__file__).parents[1] / "ssh" / "seen.py"
_MARK = "longhaul "
_REACH_S = 5.0
_SILENT = "it did not answer in time"
_SILENT_FIX = "ray status; Ray counts a dead node as living for half a minute"
_CONNECT_S = 60.0  # for Ray to be reached
_ANSWER_S = 60.0  # for every node to answer; not less than an agent may take to start there
_SEEN_WITHIN_S = 10.0  # what this machine writes, on a node; a network file system caches names


@dataclass(frozen=True)
class RayNodeSeen:
    """`said`: by launch/ssh/seen.py there; empty where `problem` says why."""

    name: str
    total: Mapping[str, float]
    said: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    fix: str = "launch.python=..., launch.workdir=..."


def check(plan: RunPlan) -> list[str]:
    """What is worth telling about a cluster that will do, a line each.

    Raises: ConfigError for settings that cannot be; Refused with every problem of every node.
    """
    config = plan.config
    launch, resources = _section(config), config.resources
    _refuse_shared_gpus(launch, ranks=resources.ranks_per_node, device=plan.device)
    nodes, usable = _survey(config, device=plan.device)
    least = resources.min_nodes or resources.nodes
    if len(usable) < least:
        raise Refused(_too_few(plan, nodes, usable, least=least))
    problems = {node.name: list(_problems(node, plan)) for node in usable}
    bad = {name: found for name, found in problems.items() if found}
    if len(usable) - len(bad) < least:
        raise Refused(table(bad, good=len(usable) - len(bad), least=least, noun="nodes"))
    told = [f"{name} does not suit: {found[0][0]}" for name, found in bad.items()]
    if len(usable) < resources.nodes:
        told.append(f"{len(usable)} of {resources.nodes} nodes are there; it begins with those")
    return told


def device_there(config: Config) -> Literal["cpu", "cuda"]:
    """What `resources.device=auto` means on the cluster."""
    gpus = _section(config).gpus_per_rank
    if gpus is not None:
        return "cuda" if gpus else "cpu"
    nodes, _ = _survey(config, device="cpu")
    return "cuda" if any(node.total.get("GPU") for node in nodes) else "cpu"


def _survey(config: Config, *, device: str) -> tuple[list[RayNodeSeen], list[RayNodeSeen]]:
    """(all nodes, those with room for ranks)."""
    resources = config.resources
    bundle = bundle_of(_section(config), ranks=resources.ranks_per_node, device=device)
    roots = (config.run.root, config.data.store_root)
    folders = tuple(dict.fromkeys(str(existing(Path(root))) for root in roots))
    least = resources.min_nodes or resources.nodes
    return _ask(_section(config).model_dump_json(), tuple(bundle.items()), folders, least)


@cache
def _ask(
    settings: str, bundle: tuple[tuple[str, float], ...], folders: tuple[str, ...], nodes: int
) -> tuple[list[RayNodeSeen], list[RayNodeSeen]]:
    """Asked once a command. Raises: Refused if the cluster cannot be asked."""
    launch = RayLaunch.model_validate_json(settings)
    refuse_without_token(launch)
    if launch.submit == "driver":
        _refuse_unreachable(launch)
    with ExitStack() as stack:
        marked = {folder: stack.enter_context(mark_in(Path(folder))) for folder in folders}
        question: dict[str, Any] = {"interface": None, "brief": False, "port": 0, "folders": marked}
        question |= {"packages": _PACKAGES, "wait_s": _SEEN_WITHIN_S}
        said = _answer(
            launch,
            {
                "launch": json.loads(settings),
                "bundle": dict(bundle),
                "nodes": nodes,
                "script": _SCRIPT.read_text(encoding="utf-8"),
                "question": question,
                "patience_s": max(_ANSWER_S, launch.start_s),
            },
        )
    found = {each["name"]: _seen(each) for each in said["nodes"]}
    return list(found.values()), [found[name] for name in said["usable"]]


def _answer(launch: RayLaunch, question: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: Refused."""
    words = ["python", "-m", "launch.raying.survey", json.dumps(question)]
    patience_s = _CONNECT_S + question["patience_s"] + launch.wait_nodes_s
    ask = _as_job if launch.submit == "job" else _in_a_process
    output = ask(launch, words, patience_s)
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            said: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            if "error" in said:
                raise Refused(why(launch, said["error"]))
            return said
    raise Refused(why(launch, output.strip().splitlines()))


def _in_a_process(launch: RayLaunch, words: Sequence[str], patience_s: float) -> str:
    """Raises: Refused."""
    try:
        done = subprocess.run(
            [sys.executable, *words[1:]],
            env=environment_for_ray(launch, os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        what = f"the Ray cluster at {address_of(launch)} did not answer in {patience_s:.0f} s"
        raise Refused(f"launch.address: {what}") from None
    return done.stdout.decode(errors="replace")


def _as_job(launch: RayLaunch, words: Sequence[str], patience_s: float) -> str:
    """On the head node, for this machine need be none of the cluster's. Raises: Refused."""
    api, name = JobsApi.of(launch), f"longhaul-look-{secrets.token_hex(8)}"
    api.submit(name, job_command(words, launch, workdir=str(Path.cwd())), env={})
    output = api.result(name, patience_s=patience_s)
    api.delete(name)
    return output


# --- why it cannot be asked ---------------------------------------------------------------------


def refuse_without_token(launch: RayLaunch) -> None:
    """Raises: Refused if a token is to be shown and there is none."""
    env = environment_for_ray(launch, os.environ)
    if launch.auth != "token" or env.get("RAY_AUTH_TOKEN"):
        return
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.is_file() or not path.read_text(encoding="utf-8", errors="replace").strip():
        raise Refused(
            f"launch.auth=token, but there is no token: RAY_AUTH_TOKEN is not set and {path} holds "
            "none\n     try: launch.token_file=/path/to/token, or launch.auth=disabled for a "
            "cluster that was started so"
        )


def address_of(launch: RayLaunch) -> str:
    """HOST:PORT, or "auto" where Ray itself is to look on this machine."""
    given = launch.address if launch.address != "auto" else os.environ.get("RAY_ADDRESS", "auto")
    return given or "auto"


def _refuse_unreachable(launch: RayLaunch) -> None:
    """Ray itself would try for minutes. Raises: Refused."""
    address = address_of(launch)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as e:
        why = e.strerror or str(e)
        raise Refused(
            f"launch.address={address}: no Ray cluster answers there ({why.lower()})\n"
            "     try: ray start --head there, or the address that it printed"
        ) from None


def why(launch: RayLaunch, errors: Sequence[str]) -> str:
    """Ray's words, in ours. It names a wrong token only deep down, as something else."""
    text = "\n".join(errors)
    address = address_of(launch)
    if "Failed to connect to socket" in text or "No node info found matching" in text:
        return (
            f"this machine is no node of the Ray cluster at {address}, and a driver must be\n"
            "     try: on the head, or from here launch.submit=job launch.dashboard=http://HEAD:8265"
        )
    if launch.submit == "job" and ("No module named" in text or "not found" in text):
        what = (text.strip().splitlines() or [""])[-1]
        return f"the head node cannot look at the cluster: {what}\n     try: launch.python=..."
    if "No module named 'ray'" in text:
        return "launch=ray: Ray is not installed here\n     try: pip install ray"
    if "ersion mismatch" in text:
        lines = [line.strip() for line in text.splitlines() if "Ray:" in line or "Python:" in line]
        found = "; ".join(dict.fromkeys(lines))
        return (
            f"the Ray cluster at {address} is of another version: {found}\n"
            "     try: the Ray and the Python of the cluster, in the environment of this command"
        )
    if "AuthenticationError" in text or "token-auth" in text or "nauthenticated" in text:
        if launch.auth == "disabled":
            return (
                f"the Ray cluster at {address} wants a token\n     try: launch.auth=token, "
                "with the token in RAY_AUTH_TOKEN or launch.token_file"
            )
        return (
            f"the Ray cluster at {address} does not take the token\n     try: the token that it "
            "was started with, in RAY_AUTH_TOKEN or launch.token_file"
        )
    if "ould not find any running Ray" in text:
        return (
            "launch.address=auto: no Ray cluster is known on this machine\n"
            "     try: launch.address=HEAD:6379, or ray start --address=HEAD:6379 here"
        )
    first = text.strip().splitlines()[0] if text.strip() else "it said nothing"
    return f"the Ray cluster at {address} cannot be used: {first}"


# --- what is wrong with nodes -------------------------------------------------------------------


def _seen(each: Mapping[str, Any]) -> RayNodeSeen:
    name, total, answer = each["name"], each["total"], each["answer"]
    if answer is None:
        return RayNodeSeen(name, total, problem=_SILENT, fix=_SILENT_FIX)
    output, errors = answer
    for line in reversed(output.splitlines()):
        if line.startswith(_MARK):
            return RayNodeSeen(name, total, json.loads(line.removeprefix(_MARK)))
    last = (errors.strip().splitlines() or ["it said nothing"])[-1]
    return RayNodeSeen(name, total, problem=last)


def _problems(node: RayNodeSeen, plan: RunPlan) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to type)."""
    if not node.said:
        yield node.problem, node.fix
        return
    said = node.said
    leave_out = ("ray",) if _section(plan.config).python else ()  # such ranks do without
    yield from other_versions(said["python"], said["versions"], leave_out=leave_out)
    for folder, seen in said["folders"].items():
        if not seen["exists"]:
            yield f"it has no folder {folder}", "run.root and data.store_root in a shared folder"
        elif not seen["seen"]:
            what = f"its {folder} is another folder than here (a file of ours is not seen there)"
            yield what, "run.root and data.store_root in a folder that all nodes share"
        elif not seen["writable"]:
            yield f"{folder} cannot be written there", "the user that Ray runs as, or its mode"


def _refuse_shared_gpus(launch: RayLaunch, *, ranks: int, device: str) -> None:
    gpus = launch.gpus_per_rank
    if device != "cuda" or gpus is None or (gpus == int(gpus) and gpus > 0):
        return
    if gpus == 0 or ranks > 1:
        what = f"{ranks} ranks a node with {gpus:g} GPU each: ranks of one run cannot share a GPU"
        fix = "launch.gpus_per_rank=null, or resources.ranks_per_node=1"
        raise ConfigError([Problem("launch.gpus_per_rank", what, fix)])


def _too_few(
    plan: RunPlan, nodes: Sequence[RayNodeSeen], usable: Sequence[RayNodeSeen], *, least: int
) -> str:
    config = plan.config
    launch = _section(config)
    ranks = config.resources.ranks_per_node
    bundle = bundle_of(launch, ranks=ranks, device=plan.device)
    wants = ", ".join(f"{n:g} {name}" for name, n in bundle.items())
    waited = f" after {launch.wait_nodes_s:g} s" if launch.wait_nodes_s else ""
    first = f"{least} nodes with {wants} are needed, and {len(usable)} are there{waited}"
    lines = [f"resources.nodes: {first}; nothing was written"]
    for node in nodes:
        has = {name: n for name, n in node.total.items() if name in bundle}
        lines.append(f"  {node.name} has {', '.join(f'{n:g} {k}' for k, n in has.items()) or '-'}")
    fix = f"resources.nodes={len(usable)}" if usable else "fewer resources.ranks_per_node"
    return "\n".join(
        [*lines, f"     try: {fix}, launch.cpus_per_rank=..., launch.wait_nodes_s=..."]
    )


def _section(config: Config) -> RayLaunch:
    assert isinstance(config.launch, RayLaunch)
    return config.launch
