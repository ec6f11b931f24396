"""Several machines: how few are enough, and words that ssh must not take for something else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import Problem

_WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
HOST = re.compile(rf"({_WORD}@)?{_WORD}")  # never an option, never two words
_WITH_PORT = re.compile(rf"({HOST.pattern}):(\d+)")
_USER = re.compile(_WORD)
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*=[^\n\r\0]+")
# Ours: agents' lives and the user's safety depend on them. Each with the reason that is told.
_OURS = {
    "batchmode": "nobody is there to answer a question",
    "stricthostkeychecking": "a host whose key is not known is refused; add it to known_hosts",
    "verifyhostkeydns": "keys come from known_hosts alone",
    "nohostauthenticationforlocalhost": "keys of all hosts are checked",
    "knownhostscommand": "keys come from known_hosts alone",
    "requesttty": "agents speak through plain pipes",
    "remotecommand": "the command is the agent's",
    "stdinnull": "orders come on stdin",
    "forkafterauthentication": "the connection is watched",
    "connecttimeout": "launch.connect_timeout_s says it",
    "serveraliveinterval": "launch.silent_s says it",
    "serveralivecountmax": "launch.silent_s says it",
    "user": "launch.user says it",
    "port": "launch.port says it",
    "identityfile": "launch.identity_file says it",
}


def nodes_problems(config: Config) -> Iterator[Problem]:
    resources = config.resources
    if resources.min_nodes > resources.nodes:
        what = f"{resources.min_nodes} machines at least, but resources.nodes={resources.nodes}"
        yield Problem("resources.min_nodes", what, f"resources.min_nodes={resources.nodes}")
    if isinstance(config.launch, SshLaunch):
        yield from _ssh_problems(config.launch)


def instead_of(host: str) -> str:
    """What to write where this is no host; empty where nothing better is known."""
    if found := _WITH_PORT.fullmatch(host):
        name = found[1].rpartition("@")[2]
        return f"launch.port={found[3]} for all hosts, or Port under Host {name} in ~/.ssh/config"
    if host.count(":") > 1:
        return "a name or an IPv4 address: ranks do not meet over IPv6"
    return ""


def _ssh_problems(launch: SshLaunch) -> Iterator[Problem]:
    for host in launch.hosts:
        if not HOST.fullmatch(host):
            what = f"{host!r} is no name, address or user@name"
            yield Problem("launch.hosts", what, instead_of(host) or "launch.hosts=[node1,node2]")
    if launch.user is not None and not _USER.fullmatch(launch.user):
        yield Problem("launch.user", f"{launch.user!r} is no name of a user", "launch.user=ubuntu")
    for option in launch.options:
        name = option.partition("=")[0]
        if not _OPTION.fullmatch(option):
            what = f"{option!r} is no Name=value"
            yield Problem("launch.options", what, """'launch.options=["ProxyJump=bastion"]'""")
        elif name.lower() in _OURS:
            what = f"{name} cannot be set: {_OURS[name.lower()]}"
            yield Problem("launch.options", what, f"leave out {name}")
    for name in ("python", "workdir", "identity_file"):
        if "\0" in (getattr(launch, name) or ""):
            yield Problem(f"launch.{name}", "it has a NUL in it", f"launch.{name}=null")
