"""longhaul sweep [NAME] [key=value ...]: trials of a search space, each a run, and the best."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launch.run.run_folder import DEFAULT_ROOT
from launch.settings.arguments import add_dry_run, add_settings, settings_parser
from trainer.errors import Exit
from trainer.records.redact import redactor_of

if TYPE_CHECKING:
    from launch.sweep.beginning import Beginning

_EPILOG = """\
examples
  longhaul sweep optimizer.learning_rate=1e-4,3e-4,1e-3 sweep=grid
  longhaul sweep 'optimizer.learning_rate=tag(log,interval(1e-4,1e-2))' sweep=asha sweep.trials=9
  longhaul sweep first-sweep sweep.trials=30         go on with it, with more trials
  longhaul status first-sweep                        state, trials, the best, cost, time left
  longhaul stop first-sweep                          its trials save; the same command goes on
"""


def main(argv: list[str], *, starter: str = "") -> int:
    """`starter`: the module that starts a trial, if it is not ours."""
    parser = settings_parser(
        "sweep",
        description="Search settings: key=1,2 or key=interval(0,1). Every trial is a run of its "
        "own, on any backend. A sweep that exists goes on where it stopped.",
        epilog=_EPILOG,
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of a sweep given by its name")
    add_settings(parser)
    add_dry_run(parser)
    given = parser.parse_intermixed_args(argv)
    begun = _begun(given)
    if given.dry_run:
        return _dry_run(begun, as_json=given.json)
    return _carry(begun, config_dirs=given.config_dir, starter=starter)


def _begun(given: argparse.Namespace) -> Beginning:
    from launch.sweep.beginning import begin, begin_again

    words = given.overrides
    if words and "=" not in words[0]:
        return begin_again(words[0], words[1:], root=given.root)
    return begin(words, config_dirs=given.config_dir)


def _dry_run(begun: Beginning, *, as_json: bool) -> int:
    """The trials that can be told before any has ended. Nothing is written."""
    from launch.sweep.samplers import sampler_of
    from launch.table import show

    sampler = sampler_of(begun.section, begun.space)
    known = begun.total if begun.section.sampler in ("grid", "random") else 1
    rows = [
        {
            "trial": begun.files.run_name(number),
            "settings": " ".join(begun.space.overrides(sampler.ask(number))),
        }
        for number in range(1, known + 1)
    ]
    show(rows, as_json=as_json)
    if not as_json:
        more = (
            f" and {begun.total - known} more, from what these come to"
            if known < begun.total
            else ""
        )
        print(f"\n{known} trials{more}, in {begun.files.root}; nothing was written")
    return Exit.DONE


def _carry(begun: Beginning, *, config_dirs: list[str], starter: str) -> int:
    from launch.node.inbox import SignalInbox
    from launch.report.write import write_page
    from launch.sweep.folder import carried, write_sweep
    from launch.sweep.journal import Journal
    from launch.sweep.one import STARTER
    from launch.sweep.page import sweep_page
    from launch.sweep.place import Runs
    from launch.sweep.samplers import sampler_of
    from launch.sweep.sweeper import Sweeper
    from launch.sweep.table import as_text, status_of_sweep

    sampler = sampler_of(begun.section, begun.space)
    write_sweep(begun.files, begun.identity, begun.command)
    with carried(begun.files), SignalInbox() as inbox:
        sweeper = Sweeper(
            section=begun.section,
            space=begun.space,
            sampler=sampler,
            journal=Journal(begun.files.trials),
            place=Runs(begun.files, begun.settings_of, inbox, starter or STARTER),
            budget=begun.budget,
            total=begun.total,
            last_step=begun.last_step,
        )
        print(f"{begun.files.name}: {begun.total} trials in {begun.files.root}", flush=True)
        ending = sweeper.run()
    status, trials = status_of_sweep(begun.files, now=time.time()), sweeper.journal.trials
    print(as_text(status))
    text = sweep_page(status, trials, begun.section, begun.space)
    write_page(begun.files.page, redactor_of(os.environ).text(text))
    print(f"figures: {begun.files.page}")
    recipes = _recipes(begun, sweeper.journal, config_dirs)
    for path in recipes:
        print(f"the best as a recipe: {path}")
    return _said(begun.files.name, ending, sweeper.same_error, has_best=bool(recipes))


def _recipes(begun: Beginning, journal: object, config_dirs: list[str]) -> list[Path]:
    from launch.settings.choices import Folders
    from launch.sweep.best import best_trials, write_recipes
    from launch.sweep.journal import Journal

    assert isinstance(journal, Journal)
    best = best_trials(journal.trials, begun.section.goals)
    if not best:
        return []
    dirs = config_dirs or begun.command["config_dirs"]
    folder = Path(dirs[0]).expanduser() if dirs else begun.files.root / "conf"
    return write_recipes(
        folder,
        begun.files.name,
        best,
        fixed=begun.fixed,
        section=begun.section,
        folders=Folders.find(begun.command["config_dirs"]),
    )


def _said(name: str, ending: str, same_error: str, *, has_best: bool) -> int:
    """One sentence where it is not all done, and the exit code."""
    if ending == "same error":
        print(
            f"{name}: every trial failed alike, so no more are started: {same_error}",
            file=sys.stderr,
        )
        return Exit.STOP
    if ending == "stopped":
        print(f"{name}: stopped; `longhaul sweep {name}` goes on", file=sys.stderr)
        return Exit.SAVED
    if ending == "budget":
        what = "the budget is spent, or does not pay for another trial"
        print(f"{name}: {what}; more sweep.budget goes on", file=sys.stderr)
        return Exit.SAVED
    if not has_best:
        print(f"{name}: no trial finished; its table says why", file=sys.stderr)
        return Exit.STOP
    return Exit.DONE
