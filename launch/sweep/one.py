"""Starts one trial: python -m launch.sweep.one SETTINGS.json

An ordinary start of an ordinary run, in a process of its own; the file beside says which one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.run.liveness import own_mark, write_mark
from launch.start import start
from launch.sweep.folder import starter_of
from trainer.errors import LonghaulError
from trainer.planning import judged
from trainer.records.json_file import read_json


def main(argv: list[str]) -> int:
    settings = Path(argv[0])
    write_mark(starter_of(settings), own_mark())
    try:
        return start(judged(read_json(settings)))
    except LonghaulError as e:
        print(e, file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
