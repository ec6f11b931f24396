"""Which Python and which packages a process sees, and whether all see the same."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from trainer.health.finding import Finding

_SHOWN = ("longhaul", "torch", "deepspeed", "transformers")
_LISTED = 4  # differences that are told in full


def gather_versions() -> dict[str, Any]:
    """`digest` tells equal from different without the list of some hundred packages."""
    packages = {"python": platform.python_version(), **_installed()}
    text = json.dumps(packages, sort_keys=True)
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], "packages": packages}


def judge_versions(seen: Mapping[str, Mapping[str, str]]) -> Finding:
    """`seen`: who ("rank 3 (node-2)") -> package -> version."""
    names = sorted(set().union(*seen.values()))
    differing = [name for name in names if len({found.get(name) for found in seen.values()}) > 1]
    if not differing:
        one = next(iter(seen.values()))
        shown = [f"{name} {one[name]}" for name in ("python", *_SHOWN) if name in one]
        return Finding("versions", ", ".join(shown))
    told = [_told(name, seen) for name in differing[:_LISTED]]
    more = f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
    fix = "install the same packages everywhere: the folder of one environment that all nodes see"
    return Finding("versions", "; ".join(told) + more, "problem", fix)


def _told(name: str, seen: Mapping[str, Mapping[str, str]]) -> str:
    """The most common version, and who has another one."""
    count = Counter(found.get(name, "missing") for found in seen.values())
    usual, times = count.most_common(1)[0]
    odd = [(who, found.get(name, "missing")) for who, found in seen.items()]
    others = [f"{version} on {who}" for who, version in odd if version != usual]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"{name} is {usual} on {times} of {len(seen)}, {', '.join(others[:3])}{more}"


def _installed() -> dict[str, str]:
    """The first of a name on the path is the one that is imported."""
    found: dict[str, str] = {}
    for one in metadata.distributions():
        name, version = one.metadata["Name"], one.metadata["Version"]
        if name and version:  # a package that was removed in mid-air has neither
            found.setdefault(name.lower().replace("_", "-"), version)
    return found
