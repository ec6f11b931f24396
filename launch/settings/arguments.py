"""The command line of verbs that compose settings: what train, plan and resume have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trainer.errors import Exit

if TYPE_CHECKING:  # pydantic costs a tenth of a second, which --help need not wait for
    from trainer.config.schema import Config


def settings_parser(verb: str, *, description: str, epilog: str) -> argparse.ArgumentParser:
    """`--config-dir`, and help that ends with examples; `key=value` is added by `add_settings`."""
    parser = argparse.ArgumentParser(
        prog=f"longhaul {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-dir", "-cd", action="append", default=[], help="more conf folders"
    )
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """`key=value ...`, behind the positional arguments that a verb has of its own."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")


def add_cfg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", "-c", metavar="job", help="print the settings and stop")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="what would be written and run")
    parser.add_argument("--json", action="store_true", help="with --dry-run")


def shows_settings(given: argparse.Namespace) -> bool:
    """Do what `--cfg` asks for; False if it was not given. Raises: ConfigError, Refused."""
    if given.cfg is None:
        return False
    from launch.settings.show_config import run as show_config

    show_config(given.overrides, given.config_dir, given.cfg)
    return True


def start_or_show(config: Config, given: argparse.Namespace) -> int:
    """Start an attempt, or with `--dry-run` print what would be started. Raises: as `start`."""
    from launch.start import dry_run, start

    if not given.dry_run:
        return start(config)
    from launch.dry_run import as_json, as_text

    what = dry_run(config)
    print(as_json(what) if given.json else as_text(what))
    return Exit.DONE
