"""Check 1: every loss that any attempt reported is the reference's, bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def wrong_losses(
    lines: Iterable[Mapping[str, Any]],
    reference: Mapping[int, float],
    *,
    skipped: Collection[int] = (),
) -> list[str]:
    """`lines`: the step lines of metrics.jsonl, all attempts. `skipped`: steps that may be absent.

    A step that was made again must say the same both times: each line is held, not the last one.
    """
    found, seen = [], set()
    for line in lines:
        step, loss = int(line["step"]), line["loss"]
        seen.add(step)
        if step in skipped:
            continue
        if step not in reference:
            found.append(f"step {step} was never to be made")
        elif bits(loss) != bits(reference[step]):
            found.append(
                f"step {step} of attempt {line['attempt']}: loss {loss!r} "
                f"instead of {reference[step]!r}"
            )
    missing = sorted(reference.keys() - seen - set(skipped))
    if missing:
        found.append(f"no loss of step {missing[0]} ({len(missing)} missing)")
    return found


def bits(value: float | None) -> bytes:
    """JSON's shortest decimals give back the very float64 that was written."""
    return b"none" if value is None else struct.pack("<d", value)
