"""What there is to rent and what it costs, in the words of the user's own tool: `sky gpus list`.

Nothing is known here: without an answer nothing is said, and nothing is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from launch.cloud.tool import ask
from trainer.errors import Refused

_TIMEOUT_S = 90.0  # the first call of a day fetches a catalogue


@dataclass(frozen=True)
class Offer:
    """A machine. Prices: dollars an hour; None: not told."""

    cloud: str
    machine: str
    gpu: str
    count: int
    region: str
    price: float | None
    spot_price: float | None


def offers(gpu: str, count: int, *, infra: str | None) -> list[Offer] | None:
    """None: the tool could not say."""
    where = ["--infra", infra] if infra is not None else []
    argv = ["sky", "gpus", "list", f"{gpu}:{count}", "--output", "json", *where]
    answer = ask(argv, timeout_s=_TIMEOUT_S)
    return read_offers(answer.out) if answer.code == 0 else None


def read_offers(text: str) -> list[Offer] | None:
    """From the JSON of the tool; None if it is something else. Words before it do no harm."""
    try:
        listed = json.loads(text[max(0, text.find("{")) :])
        found = [_offer(one) for machines in listed.values() for one in machines]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return sorted(found, key=lambda one: (one.price is None, one.price, one.cloud, one.machine))


def say_offers(gpu: str, count: int, found: Sequence[Offer] | None, *, spot: bool) -> str:
    """One line for a person; empty if nothing is known.

    Raises: Refused if the tool knows for certain that there is no such machine.
    """
    if found is None:
        return ""
    if not found:
        what = f"sky knows no machine with {count} x {gpu}"
        raise Refused(f"launch.gpu: {what}; sky gpus list --all shows what there is")
    kind = "spot_price" if spot else "price"
    priced = [one for one in found if getattr(one, kind) is not None]
    if not priced:
        return f"sky: {len(found)} machines with {count} x {gpu}, none with a price"
    best = min(priced, key=lambda one: float(getattr(one, kind)))
    word = "spot " if spot else ""
    price = f"{word}from ${getattr(best, kind):.2f} an hour"
    return f"sky: {count} x {gpu} {price} ({best.cloud} {best.machine} {best.region})"


def _offer(one: Mapping[str, Any]) -> Offer:
    return Offer(
        cloud=str(one["cloud"]),
        machine=str(one.get("instance_type") or "(attachable)"),
        gpu=str(one["accelerator_name"]),
        count=int(one["accelerator_count"]),
        region=str(one.get("region") or ""),
        price=_price(one.get("price")),
        spot_price=_price(one.get("spot_price")),
    )


def _price(value: Any) -> float | None:
    if isinstance(value, int | float) and isfinite(value):
        return float(value)
    return None
