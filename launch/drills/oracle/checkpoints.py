"""Check 4: every checkpoint of the run is whole, or lies in quarantine with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def wrong_checkpoints(
    verified: Sequence[Mapping[str, Any]],
    *,
    names: Iterable[str],
    unexplained: Iterable[str] = (),
    newest: int,
) -> list[str]:
    """`verified`: what `longhaul checkpoint verify RUN --json` says; `names`: of the folder;
    `unexplained`: folders in quarantine without a why.txt; `newest`: the step that must be there.
    """
    found = [
        f"step {one['step']} is damaged and not in quarantine: {one['problems'][0]}"
        for one in verified
        if one["problems"]
    ]
    if max((one["step"] for one in verified), default=0) != newest:
        found.append(f"the newest checkpoint is not step {newest}")
    strays = [n for n in names if ".incoming-" in n or n.endswith(".removing") or ".partial" in n]
    found += [f"{name} was left over from a save that never ended" for name in sorted(strays)]
    return found + [f"quarantine/{name} does not say why" for name in unexplained]
