"""Names, interfaces, and what the environment tells NCCL, gloo and vendors about the network."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding, Needs

_SYS = Path("/sys/class")
_SETTINGS = ("NCCL_", "GLOO_", "TORCH_NCCL_", "UCX_")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE")
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_LOOPBACK = ("127.", "::1")
_SLOW_LOOKUP_S = 1.0


def gather_network(env: Mapping[str, str], *, sys: Path = _SYS) -> dict[str, Any]:
    """Link speeds in Gbit/s. A proxy's address may hold a password: only its name is kept."""
    host = socket.gethostname()
    master = env.get("MASTER_ADDR", "")
    names = sorted(n for n in env if n.startswith(_SETTINGS) or n in _OFFLINE)
    addresses = _addresses(host)
    return {
        "host": host,
        "addresses": addresses,
        "lookup_s": _lookup_seconds(host, addresses),
        "master": master,
        "master_addresses": _addresses(master) if master else [],
        "interfaces": _interfaces(sys / "net"),
        "infiniband": _infiniband(sys / "infiniband"),
        "settings": {name: env[name] for name in names},
        "proxies": sorted(name for name in _PROXIES if env.get(name)),
    }


def judge_network(facts: Facts, needs: Needs) -> Iterator[Finding]:
    yield _own_name(facts, needs)
    for what, seconds in facts["lookup_s"].items():
        if seconds > _SLOW_LOOKUP_S:
            fix = "a name server that answers, or none: ranks meet so much later"
            text = f"{seconds:.1f} s to look up {what}"
            yield Finding("name resolution", text, "warn", fix)
    if facts["master"]:
        text = f"{facts['master']} is {', '.join(facts['master_addresses']) or 'nowhere'}"
        if facts["master_addresses"]:
            yield Finding("rendezvous address", text)
        else:
            fix = "an address that every node can look up: DNS, or a line in /etc/hosts"
            yield Finding("rendezvous address", text, "problem", fix)
    links = [f"{name} {speed:g} Gbit/s" for name, speed in _links(facts).items()]
    yield Finding("links", ", ".join(links) or "no link says how fast it is")
    given = [*facts["settings"], *facts["proxies"]]
    if given:
        yield Finding("network settings", ", ".join(given))


def judge_settings(seen: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Whether all nodes are told the same. `seen`: node -> variable -> value."""
    names = sorted(set().union(*seen.values())) if seen else []
    found = []
    for name in names:
        values = {node: settings.get(name, "(not set)") for node, settings in seen.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value} on {node}" for node, value in list(values.items())[:4])
            fix = f"the same {name} for every node"
            found.append(Finding("network settings", f"{name}: {shown}", "problem", fix))
    return found


def fastest_link(facts: Facts) -> float:
    """Gbit/s of all that a node can send at once; 0: not known."""
    rates = [one["gbit_per_s"] for one in facts["infiniband"]]
    return float(sum(rates) if rates else max(_links(facts).values(), default=0.0))


def _own_name(facts: Facts, needs: Needs) -> Finding:
    host, found = facts["host"], facts["addresses"]
    text = f"{host} is {', '.join(found) or 'nowhere'}"
    chosen = any(name in facts["settings"] for name in ("GLOO_SOCKET_IFNAME",))
    if needs.nodes == 1 or chosen:
        return Finding("name resolution", text)
    fix = f"give {host} its address in /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME"
    if not found:
        return Finding("name resolution", text, "problem", fix)
    if all(address.startswith(_LOOPBACK) for address in found):
        what = f"{text}: other nodes would be told to call themselves"
        return Finding("name resolution", what, "problem", fix)
    return Finding("name resolution", text)


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(one[4][0]) for one in found})


def _lookup_seconds(host: str, addresses: list[str]) -> dict[str, float]:
    """What torch asks for when ranks meet: IPv6 addresses too, and names of who connects. Where a
    name server does not answer, /etc/hosts helps with the second alone.
    """
    asked: dict[str, Callable[[], object]] = {
        f"IPv6 addresses of {host}": lambda: socket.getaddrinfo(host, None, socket.AF_INET6)
    }
    if addresses:
        name = f"the name of {addresses[0]}"
        asked[name] = lambda: socket.getnameinfo((addresses[0], 0), 0)
    found = {}
    for what, ask in asked.items():
        started = time.perf_counter()
        with suppress(OSError):
            ask()
        found[what] = round(time.perf_counter() - started, 3)
    return found


def _links(facts: Facts) -> dict[str, float]:
    links = facts["interfaces"] + facts["infiniband"]
    return {one["name"]: one["gbit_per_s"] for one in links if one["gbit_per_s"]}


def _interfaces(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        mbit = _text(path / "speed")
        if path.name != "lo" and _text(path / "operstate") != "down":
            speed = int(mbit) / 1000 if mbit.isdecimal() else 0.0  # virtual ones say -1
            found.append({"name": path.name, "gbit_per_s": speed})
    return found


def _infiniband(folder: Path) -> list[dict[str, Any]]:
    """Active ports: "200 Gb/sec (4X HDR)"."""
    found = []
    for port in sorted(folder.glob("*/ports/*")) if folder.is_dir() else []:
        rate = re.match(r"([\d.]+) Gb/sec", _text(port / "rate"))
        if "ACTIVE" in _text(port / "state") and rate:
            name = f"{port.parent.parent.name}:{port.name}"
            found.append({"name": name, "gbit_per_s": float(rate[1])})
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
