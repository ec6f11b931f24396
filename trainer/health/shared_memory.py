"""/dev/shm: NCCL and the data workers pass buffers there; containers give little of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding, Needs
from trainer.records.sizes import size_text

PLACE = Path("/dev/shm")
_LEAST = 64 << 20  # of a rank: NCCL's rings of one node; Docker gives 64 MiB to all of them
_ENOUGH = 1 << 30


def gather_shared_memory(place: Path = PLACE) -> dict[str, Any]:
    try:
        found = os.statvfs(place)
    except OSError as e:
        return {"path": str(place), "error": e.strerror}
    unit = found.f_frsize
    return {
        "path": str(place),
        "total_bytes": found.f_blocks * unit,
        "free_bytes": found.f_bavail * unit,
    }


def judge_shared_memory(facts: Facts, needs: Needs) -> Finding:
    name = "shared memory"
    if "error" in facts:
        fix = f"mount a tmpfs there: mount -t tmpfs tmpfs {facts['path']}"
        return Finding(name, f"{facts['path']}: {facts['error']}", "problem", fix)
    free, total = facts["free_bytes"], facts["total_bytes"]
    text = f"{size_text(free)} of {size_text(total)} free at {facts['path']}"
    of_a_rank = free / needs.ranks_per_node
    wanted = size_text(_ENOUGH * needs.ranks_per_node)
    if total < _LEAST * needs.ranks_per_node:
        fix = f"a larger one: docker run --shm-size={_gib(needs)}g (or --ipc=host), or remount it"
        return Finding(name, text, "problem", fix)
    if of_a_rank < _LEAST:
        fix = f"ls -la {facts['path']}: remove what dead processes left there"
        return Finding(name, text, "problem", fix)
    if of_a_rank < _ENOUGH:
        return Finding(name, text, "warn", f"{wanted} for {needs.ranks_per_node} ranks")
    return Finding(name, text)


def _gib(needs: Needs) -> int:
    return (_ENOUGH >> 30) * needs.ranks_per_node
