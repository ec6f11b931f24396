"""How long a rank may stay in a phase: floors from the settings, and what the run itself has shown.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.records.json_file import read_json, write_json
from trainer.records.pulse import LOOP, Beat, Phase

Kind = Literal["start", "load", "first_step", "step", "save", "eval"]

_KINDS: dict[Phase, Kind] = {
    "launch": "start",
    "imports": "start",
    "meet": "start",
    "build": "start",
    "load": "load",
    **dict.fromkeys(LOOP, "step"),
    "save": "save",
    "eval": "eval",
    "end": "save",  # observers and engines are closed, which may flush as a save does
}


@dataclass(frozen=True)
class WatchRules:
    """The section `watch` of the settings, as an agent reads it. Units: seconds, but for `factor`.

    `ceiling_s`: no limit is above it, for then the collectives' own time-out would speak first;
    0: there is none.
    """

    enabled: bool = False
    factor: float = 5.0
    start_s: float = 900.0
    load_s: float = 900.0
    first_step_s: float = 900.0
    step_s: float = 120.0
    save_s: float = 900.0
    eval_s: float = 900.0
    grace_s: float = 0.0
    ceiling_s: float = 0.0

    def floor(self, kind: Kind) -> float:
        return float(getattr(self, f"{kind}_s"))


class Limits:
    """max(floor, factor x the longest seen), by kind of phase, of this run at this world size."""

    def __init__(self, rules: WatchRules, longest: Mapping[str, float] | None = None) -> None:
        self._rules = rules
        self.longest: dict[str, float] = dict(longest or {})

    def limit(self, beat: Beat) -> float:
        kind = kind_of(beat)
        learned = self._rules.factor * self.longest.get(kind, 0.0)
        limit = max(self._rules.floor(kind), learned)
        return min(limit, self._rules.ceiling_s) if self._rules.ceiling_s else limit

    def learn(self, kind: Kind, seconds: float) -> None:
        self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)


def kind_of(beat: Beat) -> Kind:
    return "first_step" if beat.first and beat.phase in LOOP else _KINDS[beat.phase]


def kind_of_row(name: str) -> Kind:
    """`name`: one of records.pulse.ROW_NAMES."""
    return "first_step" if name == "first" else _KINDS[name]  # type: ignore[index]


def read_longest(path: Path, *, world_size: int) -> dict[str, float]:
    """What earlier attempts have shown; nothing if their world was another one."""
    try:
        value = read_json(path)
        if value["world_size"] != world_size:
            return {}
        return {str(kind): float(seconds) for kind, seconds in value["longest_s"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # learned again


def write_longest(path: Path, longest: Mapping[str, float], *, world_size: int) -> None:
    rounded = {kind: round(seconds, 3) for kind, seconds in longest.items()}
    write_json(path, {"world_size": world_size, "longest_s": rounded})
