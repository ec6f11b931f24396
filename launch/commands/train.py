"""longhaul train [key=value ...]: compose, plan, run."""

from __future__ import annotations

import argparse

from trainer.errors import Exit

_EPILOG = """\
examples
  longhaul train
  longhaul train model=llama_125m engine=zero3 batch.micro_batch_size=4 run.name=baseline
  longhaul train +experiment=stdlib_10m optimizer.learning_rate=1e-3 --dry-run
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul train",
        description="Train. A run that exists goes on where it stopped (resume=auto).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], help="more conf folders"
    )
    parser.add_argument("--cfg", "-c", metavar="job", help="print the settings and stop")
    parser.add_argument("--dry-run", action="store_true", help="what would be written and run")
    parser.add_argument("--json", action="store_true", help="with --dry-run")
    given = parser.parse_intermixed_args(argv)

    if given.cfg is not None:
        from launch.show_config import run as show_config

        return show_config(given.overrides, given.config_dir, given.cfg)
    from launch.settings import from_overrides

    config = from_overrides(given.overrides, config_dirs=given.config_dir)
    from launch.start import dry_run, start

    if given.dry_run:
        from launch.dry_run import as_json, as_text

        what = dry_run(config)
        print(as_json(what) if given.json else as_text(what))
        return Exit.DONE
    return start(config)
