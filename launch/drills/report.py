"""What the bench prints, and the page of the last results. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launch.drills.bench import Drill, Ran


@dataclass(frozen=True)
class Kept:
    """A drill's last result, as docs/drills.json has it. Units: seconds."""

    label: str
    verdict: str
    said: str
    wrong: str
    late: str
    seconds: float
    load: float
    cpu_s: float
    short: bool
    date: str
    machine: str
    figures: dict[str, float] = field(default_factory=dict)


def keep(ran: Ran, *, short: bool, date: str, machine: str) -> Kept:
    """Raises: ValueError for a drill that was not run."""
    result = ran.result
    if result is None:
        raise ValueError(f"{ran.drill.label} was not run")
    return Kept(
        label=ran.drill.label,
        verdict=ran.verdict,
        said=result.said,
        wrong=_one_line(result.wrong),
        late=_one_line(result.late),
        seconds=round(ran.seconds, 1),
        load=round(ran.load, 1),
        cpu_s=round(ran.cpu_s, 1),
        short=short and ran.drill.shortens,
        date=date,
        machine=machine,
        figures=result.figures,
    )


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Kept]) -> list[dict[str, Any]]:
    """The newest result of each drill. A short form never replaces a long one that held."""
    found = {str(one["label"]): dict(one) for one in old}
    for one in new:
        before = found.get(one.label)
        better = before is not None and before["verdict"] == "held" and not before["short"]
        if not (better and one.short and one.verdict == "held"):
            found[one.label] = asdict(one)
    return list(found.values())


def table(ran: Sequence[Ran]) -> str:
    """For a terminal: one line a drill, what is wrong below it."""
    lines = []
    for one in ran:
        drill = one.drill
        said = one.result.said if one.result else f"needs {drill.needs}"
        spent = f"{one.seconds:>6.1f} s{one.cpu_s:>6.0f} cpu"
        lines.append(f"{drill.label:<5}{one.verdict:<9}{spent}  {drill.name}: {said}")
        result = one.result
        for text in (*result.wrong[:5], *result.late) if result else ():
            lines.append(f"{'':14}{text}")
        if one.verdict == "late":
            lines.append(f"{'':14}({one.load:.1f} processes wanted each core)")
    return "\n".join(lines)


def page(drills: Sequence[Drill], kept: Sequence[Kept]) -> str:
    """docs/drills.md: every drill of the table, with the last result that there is of it."""
    by_label = {one.label: one for one in kept}
    figures: dict[str, float] = {}
    for one in kept:
        figures |= one.figures
    held = sum(one.verdict == "held" for one in kept)
    late = sum(one.verdict == "late" for one in kept)
    lines = [
        "# Fault drills",
        "",
        "Written by `make drills`; do not edit. Each drill breaks a real run on purpose and holds",
        "it against the same run left alone: losses, weights and moments bit for bit, samples",
        "exactly once, checkpoints whole or in quarantine, nothing left behind, cause recorded.",
        "",
        f"{held} of {len(kept)} drills that ran held"
        + (f", {late} were right but late on a busy machine." if late else "."),
        "",
        *(f"- {line}" for line in headlines(figures)),
        "",
        "| drill | fault | promise | bound | found | when, where |",
        "|---|---|---|---|---|---|",
    ]
    for drill in drills:
        cells = [f"{drill.label} {drill.name}", drill.fault, drill.promise, drill.bound]
        cells += _found(drill, by_label.get(drill.label))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _found(drill: Drill, kept: Kept | None) -> list[str]:
    if kept is None:
        return [f"not run here: needs {drill.needs}" if drill.needs else "not run yet", ""]
    found = kept.said
    if kept.verdict == "failed":
        found = f"FAILED: {kept.wrong}"
    elif kept.verdict == "late":
        found += f"; late: {kept.late}, with {kept.load:.1f} processes a core"
    form = ", short form" if kept.short else ""
    spent = f"{kept.seconds:.0f} s" + (f" ({kept.cpu_s:.0f} s of CPU)" if kept.cpu_s else "")
    return [found, f"{kept.date}{form}, {spent}; {kept.machine}"]


def headlines(figures: Mapping[str, float]) -> list[str]:
    """The figures that people ask for, of the drills that ran."""
    return [text.format(**figures) for needed, text in _HEADLINES if needed <= figures.keys()]


_HEADLINES: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"crash_cases", "crash_bad"}),
        "a save that ends anywhere, by kill or power loss: {crash_cases:.0f} states, "
        "{crash_bad:.0f} lost or wrong",
    ),
    (
        frozenset({"damaged", "noticed"}),
        "damaged checkpoints noticed: {noticed:.0f} of {damaged:.0f}",
    ),
    (frozenset({"false_successes"}), "saves on a full disk: {false_successes:.0f} false successes"),
    (
        frozenset({"kills", "kill_recover_s"}),
        "kill -9 of a rank: {kills:.0f} of {kills:.0f} bit-equal, first step after "
        "{kill_recover_s:.1f} s at most",
    ),
    (
        frozenset({"hangs", "hangs_right", "hang_over_s"}),
        "hung ranks: culprit right in {hangs_right:.0f} of {hangs:.0f}, found {hang_over_s:.1f} s "
        "after the limit at most",
    ),
    (frozenset({"preempt_steps_lost"}), "preemption: {preempt_steps_lost:.0f} steps lost"),
    (
        frozenset({"soak_faults", "soak_points", "soak_goodput"}),
        "soak of {soak_faults:.0f} faults: bit-equal; goodput {soak_goodput:.1f} %, foretold to "
        "{soak_points:.1f} points",
    ),
)


def _one_line(texts: Sequence[str]) -> str:
    return texts[0].replace("\n", " ")[:300] if texts else ""
