"""What evaluate, generate, export and replay are asked in the same words."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.json_file import read_json


def trained_parser(
    verb: str,
    about: str | None,
    *,
    path: str = "a run, one of its checkpoints, or an exported folder",
    step: str = "which checkpoint; the newest if not given",
) -> argparse.ArgumentParser:
    """`longhaul VERB PATH [--step N] [--json]`; `path` and `step` are their help."""
    parser = argparse.ArgumentParser(
        prog=f"longhaul {verb}", description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help=path)
    parser.add_argument("--step", type=_step, help=step)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    # The command has looked the name up by then (launch/compute.py): this is for the help.
    parser.add_argument("--root", default="runs", help="folder of run folders")
    # Settings as in conf/, for plans of older versions; only the command can compose them.
    parser.add_argument("--defaults", type=Path, help=argparse.SUPPRESS)
    return parser


def add_average(parser: argparse.ArgumentParser) -> None:
    about = "of the weights over training, where the run keeps it (regularize.ema.decay)"
    parser.add_argument("--average", action="store_true", help=about)


def defaults_of(given: argparse.Namespace) -> Mapping[str, Any]:
    """What conf/ says now; nothing where the command was not asked by `longhaul`."""
    known: dict[str, Any] = read_json(given.defaults) if given.defaults else {}
    return known


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a step, such as 100")
    return int(text)
