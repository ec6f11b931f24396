"""How settings and versions differ from those of the attempt that a run goes on from, told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from launch.outcome import newest_checkpoint, where_it_goes_on
from launch.run.run_folder import installed_versions, read_record
from trainer.changes import VERSIONS, Change, changes, version_changes
from trainer.config.schema import Config
from trainer.consequences import counted
from trainer.errors import LonghaulError
from trainer.plan import RunPlan
from trainer.records.lineage import read_lineage
from trainer.records.run_files import RunFiles

# The folder may be renamed or moved, and what one command may do is not a setting of the run.
_NOT_TOLD = ("run.name", "run.root", "resume.mode", "resume.allow", "resume.takeover")
_WIDTH = 100


def differences(
    run: RunFiles, old: Config, new: Config, *, plan_of: Callable[[Config], RunPlan]
) -> list[Change]:
    """Between the run's newest settings and the new ones, and between versions; with numbers
    where both can be planned here.
    """
    found = changes(old, new)
    if found:
        with suppress(LonghaulError):  # a plan that cannot be made is refused later, and says why
            found = counted(plan_of(old), plan_of(new), step=newest_checkpoint(run))
    found = [change for change in found if change.where not in _NOT_TOLD]
    return found + version_changes(_versions_before(run), installed_versions())


def _versions_before(run: RunFiles) -> dict[str, str]:
    known = read_lineage(run.lineage)
    return dict(known[-1].versions) if known else read_record(run).versions


def as_text(run: RunFiles, found: Sequence[Change]) -> str:
    """What is told before an attempt; empty if nothing differs."""
    if not found:
        return ""
    place = where_it_goes_on(run)
    bits = "" if all(change.keeps_bits for change in found) else "; not bit for bit any more"
    noun = "difference" if len(found) == 1 else "differences"
    lines = [f"{run.name} goes on {place} with {len(found)} {noun}{bits}"]
    for change in found:
        lines += _lines(change)
    return "\n".join(lines)


def _lines(change: Change) -> list[str]:
    where = change.where
    if where.startswith(f"{VERSIONS}."):
        where = where.removeprefix(f"{VERSIONS}.") + " (version)"
    first = f"  {change.kind:<7} {where}: {_shown(change.old)} -> {_shown(change.new)}"
    after = change.numbers or change.meaning
    if len(first) + len(after) + 3 <= _WIDTH:
        return [f"{first}   {after}"]
    return [first, f"          {after}"]


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
