"""longhaul train [key=value ...]: compose, plan, run."""

from __future__ import annotations

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
    given = parser.parse_intermixed_args(argv)
    if shows_settings(given):
        return Exit.DONE
    from launch.settings.asked import from_overrides

    return start_or_show(from_overrides(given.overrides, config_dirs=given.config_dir), given)
