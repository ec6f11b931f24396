"""What the kernel and the container allow a process: files, locked memory, processes, cores."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding, Needs
from trainer.records.sizes import size_text

_CGROUP = Path("/sys/fs/cgroup")
_FILES_OF_A_RANK = 512  # libraries, stores, logs; each peer adds sockets
_SOCKETS_OF_A_PEER = 4
_PROCESSES_OF_A_RANK = 256  # threads count: OpenMP, NCCL, data workers, the autograd engine
_NOT_LIMITED = 1 << 60  # cgroup v1 says "no limit" as a number near 2^63


def gather_limits(cgroup: Path = _CGROUP) -> dict[str, Any]:
    """Soft limits; None: unlimited."""
    return {
        "open_files": _soft(resource.RLIMIT_NOFILE),
        "locked_memory_bytes": _soft(resource.RLIMIT_MEMLOCK),
        "processes": _soft(resource.RLIMIT_NPROC),
        "core_file_bytes": _soft(resource.RLIMIT_CORE),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_quota": _cpu_quota(cgroup),
        "memory_bytes": _memory(cgroup),
    }


def judge_limits(facts: Facts, needs: Needs, *, has_infiniband: bool) -> Iterator[Finding]:
    files = _FILES_OF_A_RANK + _SOCKETS_OF_A_PEER * needs.world_size
    yield _at_least(
        "open files", facts["open_files"], files, "ulimit -n 65536 (or LimitNOFILE of the daemon)"
    )
    processes = _PROCESSES_OF_A_RANK * needs.ranks_per_node
    yield _at_least("processes", facts["processes"], processes, "ulimit -u 65536")
    locked = facts["locked_memory_bytes"]
    text = "unlimited" if locked is None else size_text(locked)
    if locked is not None and has_infiniband:
        fix = "ulimit -l unlimited: RDMA registers its buffers; for Slurm, PropagateResourceLimits"
        yield Finding("locked memory", f"{text}, with InfiniBand", "problem", fix)
    else:
        yield Finding("locked memory", text)
    yield _cores(facts, needs)
    memory = facts["memory_bytes"]
    yield Finding("memory", size_text(memory) if memory else "not known")


def _cores(facts: Facts, needs: Needs) -> Finding:
    cores, quota = facts["cores"], facts["cpu_quota"]
    usable = min(cores, quota) if quota else cores
    text = f"{cores} cores" + (f", of which {quota:g} are granted" if quota else "")
    if usable < needs.ranks_per_node:
        fix = f"ask for {needs.ranks_per_node} cores a node, or resources.ranks_per_node={usable:g}"
        return Finding("cores", f"{text} for {needs.ranks_per_node} ranks", "warn", fix)
    return Finding("cores", text)


def _at_least(name: str, value: int | None, least: int, fix: str) -> Finding:
    if value is None or value >= least:
        return Finding(name, "unlimited" if value is None else f"{value:,}")
    return Finding(name, f"{value:,}, and {least:,} may be needed", "problem", fix)


def _soft(limit: int) -> int | None:
    value = resource.getrlimit(limit)[0]
    return None if value == resource.RLIM_INFINITY else value


def _memory(cgroup: Path) -> int | None:
    """The container's limit where there is one, else what the machine has."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _text(cgroup / name)
        if text.isdecimal() and int(text) < _NOT_LIMITED:
            return int(text)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time that the container gets; None: no limit."""
    words = _text(cgroup / "cpu.max").split()
    if not words:
        words = [_text(cgroup / "cpu" / f"cpu.cfs_{n}_us") for n in ("quota", "period")]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or words[1] == "0":
        return None
    return round(int(words[0]) / int(words[1]), 2)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
