"""The door to Ray's own check of a cluster file; its functions are not public.

    python -m launch.cloud.ray_schema CLUSTER.yaml

Exit code 0: right; 9: Ray is not installed; else its words on stderr. It checks names and types of
all but `node_config`, which only the cloud knows.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

_NOT_INSTALLED = 9


def check(text: str) -> str:
    """What Ray has against it; empty: nothing. Raises: ImportError without Ray."""
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(yaml.safe_load(text)))
    except Exception as e:  # a vendor's private functions: whatever they raise is an answer
        return _in_one_line(e)
    return ""


def _in_one_line(error: Any) -> str:
    """jsonschema knows where: `message` and `absolute_path`."""
    where = ".".join(str(part) for part in getattr(error, "absolute_path", ()))
    said = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
    return f"{where}: {said[0]}" if where else said[0]


def main() -> int:
    logging.disable(logging.CRITICAL)  # it says what it fills in; only the verdict counts
    try:
        wrong = check(Path(sys.argv[1]).read_text(encoding="utf-8"))
    except ImportError:
        return _NOT_INSTALLED
    print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
