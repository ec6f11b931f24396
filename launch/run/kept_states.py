"""What of a run lies in the memory of machines, seen by who makes and ends its attempts.

Standard library only; how states get there and are read: trainer/checkpoint/peer/tier.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.outcome import Outcome, where_it_goes_on
from launch.run.run_folder import attempts
from trainer.errors import Exit, Superseded
from trainer.records.json_file import read_json
from trainer.records.memory_files import MemoryFiles, give_back, is_held, memory_of
from trainer.records.owner import refuse_if_superseded
from trainer.records.run_files import AttemptFiles, RunFiles


def kept_by(files: AttemptFiles) -> MemoryFiles | None:
    """Where the attempt keeps states in memory; None if it keeps none."""
    try:
        plan: dict[str, Any] = read_json(files.plan)
    except (OSError, ValueError):
        return None
    return memory_of(plan)


def goes_on(run: RunFiles, files: AttemptFiles) -> str:
    """From where the attempt will, for people: what lies in memory only its ranks can tell."""
    place = where_it_goes_on(run)
    if kept_by(files) is None:
        return place
    return f"{place}, or from a later step that is still in memory"


def give_back_if_over(files: AttemptFiles, outcome: Outcome, *, node: int) -> None:
    """Free the memory of this node, unless another attempt may want what is in it. Never raises."""
    if is_over(outcome):
        give_back_of(files, node=node)


def is_over(outcome: Outcome) -> bool:
    """Whether no attempt will go on from what is in memory."""
    return outcome.action in ("done", "give_up") or outcome.exit_code in (Exit.DONE, Exit.SAVED)


def give_back_of(files: AttemptFiles, *, node: int | None = None) -> None:
    """What the attempt, and those before it, kept on this machine (`node`: on this node). Never
    raises. Nothing where a later attempt has the run: the states are its own by now.
    """
    memory = kept_by(files)
    if memory is not None and _is_ours(files):
        give_back(memory, node)


def _is_ours(files: AttemptFiles) -> bool:
    try:
        refuse_if_superseded(RunFiles(files.root.parent.parent).owner, files.number)
    except (Superseded, OSError):
        return False
    return True


def left_in_memory(run: RunFiles) -> list[Path]:
    """What lies in this machine's memory of a run that does not run."""
    memory = _newest_memory(run)
    if memory is None or not memory.root.is_dir() or is_held(memory.root):
        return []
    return [memory.root]


def has_states(run: RunFiles) -> bool:
    """Whether this machine's memory holds a rank's state of the run, from which it might go on."""
    memory = _newest_memory(run)
    return memory is not None and bool(memory.parts())


def _newest_memory(run: RunFiles) -> MemoryFiles | None:
    return next((m for files in reversed(attempts(run)) if (m := kept_by(files))), None)
