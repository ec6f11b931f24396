"""longhaul resume RUN [key=value ...]: a new attempt of a run."""

from __future__ import annotations

from pathlib import Path

from launch.run.run_folder import DEFAULT_ROOT, find
from launch.settings.arguments import add_dry_run, add_settings, settings_parser, start_or_show
from launch.settings.asked import of_run
from trainer.errors import Refused
from trainer.records.run_files import RunFiles

_EPILOG = """\
examples
  longhaul resume first-run
  longhaul resume first-run steps.total=600 engine=zero3 resources.ranks_per_node=1
"""


def main(argv: list[str]) -> int:
    parser = settings_parser(
        "resume",
        description="Go on with a run: its own settings, changed by what is given here.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", help="name or path")
    add_settings(parser)
    add_dry_run(parser)
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_intermixed_args(argv)
    run = find(given.run, root=Path(given.root))
    _refuse_another_name(run, given.overrides)
    config = of_run(run, given.overrides, config_dirs=given.config_dir)
    return start_or_show(config, given)


def _refuse_another_name(run: RunFiles, overrides: list[str]) -> None:
    """Raises: Refused: the run keeps its folder, so that another name would be ignored unsaid."""
    for override in overrides:
        key, _, name = override.lstrip("+").partition("=")
        if key == "run.name" and name != run.root.name:
            raise Refused(
                f"resume goes on with {run.root} as it is called, so {override} cannot be meant: "
                f"longhaul runs rename {run.root.name} {name} calls it so, and longhaul train "
                "begins another run"
            )
