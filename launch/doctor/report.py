"""Findings for people and schedulers: one table, a line for what is wrong, nodes to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.table import text_of
from trainer.health.finding import Finding

_WORST = {"ok": 0, "warn": 1, "problem": 2}
_WIDE = 96  # characters of a value in the table; lines below it are whole


def is_well(findings: Sequence[Finding]) -> bool:
    return not any(one.verdict == "problem" for one in findings)


def excluded(findings: Sequence[Finding], nodes: Sequence[str]) -> list[str]:
    """Nodes with a problem of their own. What more than half of them have is the site's."""
    bad: dict[str, set[str]] = {}
    known = set(nodes)
    for one in findings:
        if one.verdict == "problem" and one.node in known:
            bad.setdefault(one.name, set()).add(one.node)
    own = {node for found in bad.values() if len(found) * 2 <= len(nodes) for node in found}
    return [node for node in nodes if node in own] if len(nodes) > 1 else []


def as_text(findings: Sequence[Finding], *, nodes: Sequence[str]) -> str:
    parts = [text_of(_rows(findings))]
    for verdict, word in (("problem", "PROBLEM"), ("warn", "warning")):
        parts += [_line(word, one) for one in findings if one.verdict == verdict]
    problems = sum(one.verdict == "problem" for one in findings)
    noun = "problem" if problems == 1 else "problems"
    parts.append(f"{problems} {noun}" if problems else "no problems")
    if out := excluded(findings, nodes):
        parts.append(f"leave out: {','.join(out)}")
    return "\n".join(parts)


def as_json(findings: Sequence[Finding], *, nodes: Sequence[str], measured: Any) -> dict[str, Any]:
    return {
        "well": is_well(findings),
        "exclude": excluded(findings, nodes),
        "findings": [asdict(one) for one in findings],
        "measured": measured,
    }


def _rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """What is well on several nodes is one row; whatever is not has its own."""
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for number, one in enumerate(findings):
        own = "" if one.verdict == "ok" and one.node else str(number)
        grouped.setdefault((one.name, own), []).append(one)
    return [_row(group) for group in grouped.values()]


def _row(group: Sequence[Finding]) -> dict[str, str]:
    first = group[0]
    nodes = {one.node for one in group}
    value = first.value
    if len({one.value for one in group}) > 1 and len(nodes) > 1:
        value = f"{first.value} on {first.node}, others differ"
    elif len(group) > 1 and len(nodes) == 1:
        value = "; ".join(one.value for one in group)
    where = first.node if len(nodes) == 1 else f"{len(nodes)} nodes"
    verdict = "PROBLEM" if first.verdict == "problem" else first.verdict
    shown = value if len(value) <= _WIDE else f"{value[: _WIDE - 3]}..."
    return {"check": first.name, "node": where, "found": shown, "verdict": verdict}


def _line(word: str, one: Finding) -> str:
    where = f" on {one.node}" if one.node else ""
    fix = f"\n     try: {one.fix}" if one.fix else ""
    return f"{word}: {one.name}{where}: {one.value}{fix}"
