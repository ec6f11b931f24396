"""longhaul report RUN: what a run was, or what a sweep found, on one page."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from launch.report.facts import read_facts
from launch.report.page import run_page
from launch.report.write import write_page
from launch.run.run_folder import DEFAULT_ROOT, find
from launch.run.standing import standing
from launch.sweep.folder import SweepFiles, find_sweep
from trainer.records.redact import redactor_of

_EPILOG = "examples: longhaul report first-run; longhaul report first-run --to /tmp/first.html"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul report",
        description="One page that needs nothing but itself: curves, where the time went, attempts "
        "and their causes, scores, samples, data, settings; of a sweep: its trials.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", help="name or path, of a sweep too; it may be running")
    parser.add_argument(
        "--to", metavar="FILE", type=Path, help="default: report.html or sweep.html in its folder"
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_args(argv)
    if (sweep := find_sweep(given.run, root=Path(given.root))) is not None:
        return _report_sweep(sweep, given.to or sweep.page)
    run = find(given.run, root=Path(given.root))
    facts = read_facts(run, standing(run).job)
    path = given.to or run.report
    write_page(path, redactor_of(os.environ).text(run_page(facts)))
    print(path)
    return 0


def _report_sweep(files: SweepFiles, path: Path) -> int:
    from launch.sweep.beginning import searched
    from launch.sweep.journal import read_trials
    from launch.sweep.page import sweep_page
    from launch.sweep.table import status_of_sweep

    section, space = searched(files)
    status = status_of_sweep(files, now=time.time())
    text = sweep_page(status, read_trials(files.trials), section, space)
    write_page(path, redactor_of(os.environ).text(text))
    print(path)
    return 0
