"""All themes of one machine together: facts first, what they mean afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.health.build_locks import gather_build_locks, judge_build_locks
from trainer.health.clock import gather_clock, judge_clock
from trainer.health.credentials import gather_credentials, judge_credentials
from trainer.health.finding import Facts, Finding, Needs
from trainer.health.folder import gather_folder, judge_folder
from trainer.health.gpus import gather_gpus, judge_gpus
from trainer.health.limits import gather_limits, judge_limits
from trainer.health.network import gather_network, judge_network
from trainer.health.shared_memory import gather_shared_memory, judge_shared_memory


def gather_machine(env: Mapping[str, str], *, run_root: Path) -> dict[str, Any]:
    """A second or two. `run_root` must be there. No value of a secret is in what comes back."""
    return {
        "limits": gather_limits(),
        "shared_memory": gather_shared_memory(),
        "folder": gather_folder(run_root),
        "clock": gather_clock(),
        "network": gather_network(env),
        "build_locks": gather_build_locks(env),
        "gpus": gather_gpus(),
        "credentials": gather_credentials(env),
    }


def judge_machine(facts: Facts, needs: Needs, *, node: str) -> list[Finding]:
    return [replace(one, node=node) for one in _judged(facts, needs)]


def _judged(facts: Facts, needs: Needs) -> Iterator[Finding]:
    infiniband = bool(facts["network"]["infiniband"])
    yield from judge_limits(facts["limits"], needs, has_infiniband=infiniband)
    yield judge_shared_memory(facts["shared_memory"], needs)
    yield from judge_folder(facts["folder"], needs)
    yield judge_clock(facts["clock"], needs)
    yield from judge_network(facts["network"], needs)
    yield from judge_build_locks(facts["build_locks"])
    yield from judge_gpus(facts["gpus"], needs)
    yield from judge_credentials(facts["credentials"], needs)
