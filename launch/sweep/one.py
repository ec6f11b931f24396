"""Starts one trial: python -m launch.sweep.one SETTINGS.json

An ordinary start of an ordinary run, in a process of its own; the file beside says which one. Its
exit code is that of the start, but for what the place refused and not the settings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from launch.run.liveness import own_mark, write_mark
from launch.start import start
from launch.sweep.folder import starter_of
from trainer.config.schema import Config
from trainer.errors import ConfigError, LonghaulError, Refused
from trainer.planning import judged
from trainer.records.json_file import read_json

STARTER = "launch.sweep.one"  # this module
NOT_TAKEN = 3  # by the place: its scheduler does not answer, or takes no more jobs for now


def main(argv: list[str], *, start: Callable[[Config], int] = start) -> int:
    settings = Path(argv[0])
    write_mark(starter_of(settings), own_mark())
    try:
        return start(judged(read_json(settings)))
    except LonghaulError as e:
        print(e, file=sys.stderr)
        is_of_place = isinstance(e, Refused) and not isinstance(e, ConfigError)
        return NOT_TAKEN if is_of_place else e.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
