"""An audit's report as text for people."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trainer.records.audit import AuditReport


def as_text(report: AuditReport, *, allow: Collection[str]) -> str:
    """Counts of both splits, then each finding with its rows, those that refuse first."""
    lines = [line for split in report.facts for line in _counts(split, report.facts[split])]
    refused = report.refused(allow=allow)
    for finding in report.findings:
        if finding in refused:
            word = "refused"
        else:
            word = "allowed" if finding.severity == "refuse" else "warning"
        lines.append(f"{word} ({finding.kind}): {finding.line()}")
        lines += [f"    {shown}" for shown in finding.shown]
    if not refused:
        lines.append("fit to train on")
    else:
        kinds = ",".join(dict.fromkeys([*allow, *(f.kind for f in refused)]))
        lines.append(f"not fit to train on; to start all the same: data.audit.allow=[{kinds}]")
    return "\n".join(lines)


def _counts(split: str, facts: Mapping[str, Any]) -> Iterator[str]:
    learnt = ""
    if "learnt" in facts:
        learnt = f", {facts['learnt']:,} of them learnt ({facts['learnt_share']:.1%})"
    yield f"{split}: {facts['examples']:,} examples, {facts['tokens']:,} tokens{learnt}"
    if facts["lengths"]:
        spread = ", ".join(f"{name} {count:,}" for name, count in facts["lengths"].items())
        yield f"  tokens an example: {spread}"
    if facts.get("labels"):
        labels = ", ".join(f"{name} {count:,}" for name, count in facts["labels"].items())
        yield f"  labels: {labels}"
