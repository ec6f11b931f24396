"""longhaul train [key=value ...]: compose, plan, run."""

from __future__ import annotations

import argparse

from launch.settings.arguments import (
    add_cfg,
    add_dry_run,
    add_settings,
    settings_parser,
    shows_settings,
    start_or_show,
)
from trainer.errors import Exit

_EPILOG = """\
examples
  longhaul train
  longhaul train model=llama_125m engine=zero3 batch.micro_batch_size=4 run.name=baseline
  longhaul train +experiment=stdlib_10m optimizer.learning_rate=1e-3 --dry-run
  longhaul train -m launch=slurm optimizer.learning_rate=1e-3,3e-4     two runs, one job array
"""


def main(argv: list[str]) -> int:
    parser = settings_parser(
        "train",
        description="Train. A run that exists goes on where it stopped (resume=auto).",
        epilog=_EPILOG,
    )
    add_settings(parser)
    add_cfg(parser)
    add_dry_run(parser)
    several = "a run for every combination of values: key=1,2 or key=range(1,4)"
    parser.add_argument("--multirun", "-m", action="store_true", help=several)
    unstarted = "write the attempt down for torchrun, and start nothing"
    parser.add_argument("--no-start", action="store_true", help=unstarted)
    given = parser.parse_intermixed_args(argv)
    if shows_settings(given):
        return Exit.DONE
    if given.multirun:
        if given.no_start:
            parser.error("--no-start writes one attempt down; it cannot be with --multirun")
        return _several(given)
    from launch.settings.asked import from_overrides

    config = from_overrides(given.overrides, config_dirs=given.config_dir)
    if given.no_start and not given.dry_run:
        from launch.start import write_down

        return write_down(config)
    return start_or_show(config, given)


def _several(given: argparse.Namespace) -> int:
    from launch.many import dry_run_many, start_many
    from launch.settings.several import members

    found, name = members(given.overrides, config_dirs=given.config_dir)
    if given.dry_run:
        return dry_run_many(found, name=name, as_json=given.json)
    return start_many(found, name=name)
