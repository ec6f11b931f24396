"""`longhaul sweep` with ranks that do not compute (tests/helpers/in_vain.py).

python -m tests.helpers.swept ARGUMENTS        the sweep
python -m tests.helpers.swept SETTINGS.json    one of its trials
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.commands import sweep
from launch.start import start
from launch.sweep import one
from tests.helpers.fake_ranks import blank_store, fake_backend
from trainer.config.schema import Config
from trainer.errors import LonghaulError


def main(arguments: Sequence[str]) -> int:
    words = list(arguments)
    if words[0].endswith(".json"):
        return one.main(words, start=_start)
    try:
        return sweep.main(words, starter="tests.helpers.swept")
    except LonghaulError as e:
        print(e, file=sys.stderr)
        return e.exit_code


def _start(config: Config) -> int:
    root = Path(config.data.store_root)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:  # several trials begin at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(root.glob("*/manifest.json")):
            blank_store(config)
    backend = fake_backend(config.launch.kind, module="tests.helpers.in_vain")
    return start(config, backend=backend)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
