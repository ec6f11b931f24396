"""What a session of the bench prints and what docs/drills.md says. Text out of values; pure."""

from __future__ import annotations

from collections.abc import Sequence

from launch.drills.bench import Ran

_WIDTH = 100


def table(ran: Sequence[Ran]) -> str:
    """For a terminal: one line a drill, what is wrong below it."""
    lines = []
    for one in ran:
        drill = one.drill
        said = one.result.said if one.result else f"needs {drill.needs}"
        lines.append(f"{drill.label:<5}{one.verdict:<9}{one.seconds:>6.1f} s  {drill.name}: {said}")
        result = one.result
        for text in (*result.wrong[:5], *result.late) if result else ():
            lines.append(f"{'':14}{text}")
        if one.verdict == "late":
            lines.append(f"{'':14}({one.load:.1f} processes wanted each core)")
    return "\n".join(lines)


def page(ran: Sequence[Ran], *, headline: Sequence[str], date: str, machine: str) -> str:
    """docs/drills.md."""
    held = sum(one.verdict == "held" for one in ran)
    done = sum(one.result is not None for one in ran)
    lines = [
        "# Fault drills",
        "",
        "Written by `make drills`; do not edit. Each drill breaks a real run on purpose and holds",
        "it against the same run left alone: losses, weights and moments bit for bit, samples",
        "exactly once, checkpoints whole or in quarantine, nothing left behind, cause recorded.",
        "",
        f"Last run: {date}, {machine}. {held} of {done} held.",
        "",
        *(f"- {line}" for line in headline),
        "",
        "| drill | fault | promise | bound | found | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for one in ran:
        drill = one.drill
        if one.result is None:
            found, seconds = f"not run here: needs {drill.needs}", ""
        else:
            found = one.result.said
            if one.verdict == "late":
                found += f"; late: {one.result.late[0]} ({one.load:.1f} processes a core)"
            if one.verdict == "failed":
                found = f"FAILED: {_first_wrong(one)}"
            seconds = f"{one.seconds:.0f}"
        cells = (
            f"{drill.label} {drill.name}",
            drill.fault,
            drill.promise,
            drill.bound,
            found,
            seconds,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _first_wrong(one: Ran) -> str:
    text = one.result.wrong[0] if one.result else ""
    return text.replace("\n", " ")[:300]
