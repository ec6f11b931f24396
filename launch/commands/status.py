"""longhaul status [RUN ...]: how runs stand, from their folders; or one sweep."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from launch.run.lineage import rows
from launch.run.run_folder import DEFAULT_ROOT, find, list_runs
from launch.run.standing import standings
from launch.run.status import RunStatus, status_of
from launch.sweep.folder import SweepFiles, find_sweep
from launch.table import age_text, show
from trainer.records.lineage import read_lineage
from trainer.records.run_files import RunFiles

_FEW = 20  # runs whose ledgers are read in full
_EPILOG = "examples: longhaul status first-run --json; longhaul status first-run --lineage"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul status", description="How runs stand.", epilog=_EPILOG
    )
    parser.add_argument(
        "run", nargs="*", help="name or path; all runs under --root if none is given"
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    parser.add_argument("--json", action="store_true")
    help_text = "what each attempt went on from, and what was changed"
    parser.add_argument("--lineage", action="store_true", help=help_text)
    given = parser.parse_args(argv)
    root = Path(given.root)
    if len(given.run) == 1 and (sweep := find_sweep(given.run[0], root=root)):
        _show_sweep(sweep, as_json=given.json)
        return 0
    runs = [find(name, root=root) for name in given.run] or list_runs(root)
    if given.lineage:
        _show_lineage(runs, as_json=given.json)
        return 0
    few = len(runs) <= _FEW
    found = [
        status_of(run, now.job, with_goodput=few)
        for run, now in zip(runs, standings(runs), strict=True)
    ]
    if given.json:
        show([asdict(one) for one in found], as_json=True)
    else:
        show([_row(one) for one in found], as_json=False, empty=f"no runs under {root}/")
        if not given.run:
            _list_sweeps(root)
        for one in found:
            if one.why and (one.note or one.state not in ("running", "finished")):
                print(f"\n{one.run}: {one.why}")
    return 0


def _show_sweep(files: SweepFiles, *, as_json: bool) -> None:
    from launch.sweep.table import as_text, status_of_sweep

    found = status_of_sweep(files, now=time.time())
    print(json.dumps(asdict(found), indent=2) if as_json else as_text(found))


def _list_sweeps(root: Path) -> None:
    """One line each; their trials are not among the runs."""
    from launch.sweep.table import headline, status_of_sweep

    for path in sorted(root.glob("*/sweep.json")):
        print(f"sweep {headline(status_of_sweep(SweepFiles(path.parent), now=time.time()))}")


def _show_lineage(runs: list[RunFiles], *, as_json: bool) -> None:
    if as_json:
        lines = [{"run": r.name, **asdict(one)} for r in runs for one in read_lineage(r.lineage)]
        show(lines, as_json=True)
        return
    for run in runs:
        print(f"{run.name}:")
        show(rows(run), as_json=False, empty="no attempt is written down")


def _row(one: RunStatus) -> dict[str, object]:
    return {
        "run": one.run,
        "state": one.state_text,
        "step": f"{one.step}/{one.total}" if one.total else one.step,
        "loss": one.loss,
        "tokens/s": one.tokens_per_second,
        "checkpoint": one.checkpoint or None,
        "attempt": one.attempt or None,
        "left": age_text(one.left_s) if one.left_s is not None else None,
        "goodput": f"{one.goodput:.0%}" if one.goodput is not None else None,
    }
