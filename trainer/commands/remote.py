"""`python -m trainer.commands.remote URL [--options JSON] --result FILE`: what copies of a run say.

The result: {"run", "attempt", "plan", "withdrawn", "step", "problem"}: run.json and the newest
attempt's plan as they are there, or null; the newest step that is there whole, 0 for none;
`problem` where the place cannot be reached.
Exit codes: 0 the result is written, 2 the URL cannot be used here (a package is missing, say).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.remote_steps import (
    ATTEMPTS,
    RUN_JSON,
    WITHDRAWN,
    all_folders,
    is_committed,
    read_object,
)
from trainer.errors import LonghaulError
from trainer.records.json_file import write_json
from trainer.storage.patient import Patient
from trainer.storage.remote import ObjectStore, open_store

_DELAYS_S = (1.0, 2.0, 4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="longhaul runs fetch", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--result", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        write_json(given.result, look(given.url, given.options))
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    return 0


def look(
    url: str, options: dict[str, Any], *, delays_s: tuple[float, ...] = _DELAYS_S
) -> dict[str, Any]:
    """Raises: Refused if the URL cannot be used here."""
    nothing = dict.fromkeys(("run", "plan", "withdrawn")) | {"attempt": 0, "step": 0, "problem": ""}
    store = Patient(open_store(url, options), delays_s=delays_s)
    try:
        return nothing | _found(store)
    except OSError as e:
        return nothing | {"problem": e.strerror or str(e)}
    except ValueError as e:
        return nothing | {"problem": f"what lies there is damaged: {e}"}


def _found(store: ObjectStore) -> dict[str, Any]:
    whole = [folder.step for folder in all_folders(store) if is_committed(store, folder)]
    found: dict[str, Any] = {"step": max(whole, default=0)}
    if store.size(RUN_JSON) is None:
        return found
    found["run"] = json.loads(read_object(store, RUN_JSON))
    numbers = [int(name) for name in store.names(ATTEMPTS) if name.isdecimal()]
    if numbers:
        plan = ATTEMPTS / f"{max(numbers):04d}" / "plan.json"
        found |= {"attempt": max(numbers), "plan": json.loads(read_object(store, plan))}
    if store.size(WITHDRAWN) is not None:
        found["withdrawn"] = json.loads(read_object(store, WITHDRAWN))
    return found


if __name__ == "__main__":
    sys.exit(main())
