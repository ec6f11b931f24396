"""What `longhaul evaluate` leaves in a run folder: figures of a step, as pages and pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from trainer.evals.plots.files import write_task_figures
from trainer.records.run_files import RunFiles


def write_figures(
    path: Path, task: object, totals: Mapping[str, float], *, step: int
) -> Path | None:
    """The folder that the figures of a task's sums are in; None if it has none to show, and for an
    exported folder, which is no run. `path`: what was evaluated. A disk that takes none is said,
    and no error: the scores are there.
    """
    run = _run_of(path)
    if run is None:
        return None
    folder = run.figures / f"step-{step:08d}"
    try:
        return folder if write_task_figures(folder, task, totals) else None
    except OSError as e:
        print(f"the figures could not be written to {folder}: {e}", file=sys.stderr)
        return None


def _run_of(path: Path) -> RunFiles | None:
    for root in (path, path.parent.parent):  # a run, or one of its checkpoints
        if (root / "run.json").is_file():
            return RunFiles(root)
    return None
