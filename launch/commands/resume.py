"""longhaul resume RUN [key=value ...]: a new attempt of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.dry_run import as_json, as_text
from launch.run_folder import DEFAULT_ROOT, find
from launch.settings import of_run
from launch.start import dry_run, start
from trainer.errors import Exit

_EPILOG = """\
examples
  longhaul resume first-run
  longhaul resume first-run steps.total=600 engine=zero3 resources.ranks_per_node=1
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul resume",
        description="Go on with a run: its own settings, changed by what is given here.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="name or path")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], help="more conf folders"
    )
    parser.add_argument("--dry-run", action="store_true", help="what would be written and run")
    parser.add_argument("--json", action="store_true", help="with --dry-run")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_intermixed_args(argv)
    run = find(given.run, root=Path(given.root))
    config = of_run(run, given.overrides, config_dirs=given.config_dir)
    if given.dry_run:
        what = dry_run(config)
        print(as_json(what) if given.json else as_text(what))
        return Exit.DONE
    return start(config)
