"""What the audit of examples found: a file beside their store, which decides whether one trains.

Standard library only, so that the launcher can ask before it starts any child process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json, write_json

AUDIT = "audit.json"
FORMAT = 1
MOST_PLACES = 10  # of one finding that are named
Severity = Literal["refuse", "warn"]


@dataclass(frozen=True)
class Finding:
    """`kind` is what data.audit.allow names. `places`: "train.jsonl row 7", the first of `count`;
    `shown`: what stands there, where that helps."""

    kind: str
    severity: Severity
    count: int
    said: str
    fix: str
    places: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def line(self) -> str:
        """One sentence: what, where, what to do."""
        more = (
            f" and {self.count - len(self.places):,} more" if self.count > len(self.places) else ""
        )
        where = f": {_listed(self.places)}{more}" if self.places else ""
        return f"{self.said}{where}; {self.fix}"


@dataclass(frozen=True)
class AuditReport:
    """`facts`: counts by split, for people. `subject`: names what was audited, exactly."""

    subject: str
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def refused(self, *, allow: Collection[str] = ()) -> tuple[Finding, ...]:
        """What keeps a run from starting, but for the kinds that its user allows."""
        return tuple(f for f in self.findings if f.severity == "refuse" and f.kind not in allow)

    def check(self, *, allow: Collection[str] = ()) -> None:
        """Raises: DataError with the first finding that refuses, and how many there are."""
        refused = self.refused(allow=allow)
        if not refused:
            return
        first = refused[0]
        kinds = ",".join(dict.fromkeys([*allow, *(f.kind for f in refused)]))
        others = (
            f" ({len(refused) - 1} more kinds: longhaul data audit)" if len(refused) > 1 else ""
        )
        raise DataError(
            f"the examples are not fit to train on: {first.line()}{others}; or as they are: "
            f"data.audit.allow=[{kinds}]"
        )


def _listed(places: Sequence[str]) -> str:
    """ "a.csv rows 7, 9, b.csv row 3": a file's long name stands there once."""
    rows: dict[str, list[str]] = {}
    for place in places:
        file, _, row = place.rpartition(" row ")
        if not file or not row.isdigit():
            return ", ".join(places)
        rows.setdefault(file, []).append(row)
    return ", ".join(f"{f} row{'s' * (len(r) > 1)} {', '.join(r)}" for f, r in rows.items())


def subject_name(digests: Mapping[str, str], *, near_copies: bool) -> str:
    """Of the stores of all sources together; `digests`: a source's name -> what is in its store."""
    facts = [FORMAT, near_copies, dict(digests)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_audit(folder: Path, report: AuditReport) -> None:
    write_json(folder / AUDIT, {"format": FORMAT, **asdict(report)})


def read_audit(folder: Path) -> AuditReport | None:
    """None if there is none of this format, or it is damaged: it is made again then."""
    try:
        value: dict[str, Any] = read_untrusted_json(folder / AUDIT)
        if value.pop("format", None) != FORMAT:
            return None
        findings = [
            Finding(**f | {"places": tuple(f["places"]), "shown": tuple(f["shown"])})
            for f in value.pop("findings")
        ]
        return AuditReport(findings=tuple(findings), **value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def is_fit(folder: Path, *, subject: str, allow: Collection[str]) -> bool:
    """Whether the store there was audited as part of `subject`, and may be trained on."""
    report = read_audit(folder)
    return report is not None and report.subject == subject and not report.refused(allow=allow)
