"""Which hosts a run may use, from its settings."""

from __future__ import annotations

from pathlib import Path

from trainer.config.nodes_rules import HOST, instead_of
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import ConfigError, Problem


def hosts_of(launch: SshLaunch) -> tuple[str, ...]:
    """In the order in which they are taken.

    Raises: ConfigError if there is none, the file cannot be read, or one stands there twice.
    """
    hosts = launch.hosts
    where = "launch.hosts"
    if launch.hosts_file is not None:
        where = "launch.hosts_file"
        if hosts:
            what = "hosts are given twice, here and in launch.hosts"
            raise ConfigError([Problem(where, what, "launch.hosts_file=null")])
        hosts = _read(Path(launch.hosts_file))
    if not hosts:
        what = "no host is named, and launch=ssh starts ranks on hosts only"
        if launch.hosts_file is not None:
            what = f"{launch.hosts_file} names no host"
        raise ConfigError([Problem(where, what, "launch.hosts=[node1,node2]")])
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    if twice:
        raise ConfigError([Problem(where, f"{', '.join(twice)} stands there twice", "each once")])
    return hosts


def _read(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "it is no text"
        what = f"{path} cannot be read ({why})"
        raise ConfigError([Problem("launch.hosts_file", what, "a file of one host a line")]) from e
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        host = line.partition("#")[0].strip()
        if host and not HOST.fullmatch(host):
            what = f"{host!r} is no name, address or user@name"
            problems.append(
                Problem(f"{path} line {number}", what, instead_of(host) or "one host a line")
            )
        elif host:
            found.append(host)
    if problems:
        raise ConfigError(problems)
    return tuple(found)
