"""Check 2: the last checkpoint holds the reference's bits: masters and moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def wrong_tensors(diff: Mapping[str, Any], *, step: int) -> list[str]:
    """`diff`: what `longhaul checkpoint diff RUN REFERENCE --json` says. `step`: the last one."""
    found = []
    if diff["steps"] != [step, step]:
        found.append(f"the last checkpoints are of steps {diff['steps']}, not both of {step}")
    for side, names in diff["only_in"].items():
        found += [f"tensor {name} is only in the {side}" for name in names]
    if not diff["tensors"]:
        found.append("no tensor was compared")
    for one in diff["tensors"]:
        if one["differing"]:
            what = f"{one['kind']} of {one['name']}"
            found.append(f"{what}: {one['differing']} of {one['elements']} elements differ")
    return found
