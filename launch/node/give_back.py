"""Frees what a run that is over keeps in this memory; an order of its driver (driving/memory.py).

    python -m launch.node.give_back RUN_FOLDER --attempt N

Standard library only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.run.kept_states import give_back_of
from trainer.records.run_files import RunFiles


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.node.give_back")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    give_back_of(RunFiles(given.run_folder).attempt(given.attempt))
    return 0


if __name__ == "__main__":
    sys.exit(main())
