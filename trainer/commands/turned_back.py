"""`python -m trainer.commands.turned_back RUN --attempt N`: copies hear where the run turned back.

For the end of a run: withdrawn.json of this machine is joined with the list beside the copies, so
that a machine with nothing goes on from the step this one would go on from.
Exit codes: 0 both say the same (or there are no copies of this run), 76 it could not be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.remote_steps import RUN_JSON, put_withdrawals, withdrawals
from trainer.checkpoint.uploader import run_id_of
from trainer.errors import Exit, LonghaulError, RunFolderError
from trainer.records.copies import copied_to, emptied
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import merged, read_withdrawals
from trainer.storage.patient import Patient
from trainer.storage.remote import ObjectStore, joined, open_store

_DELAYS_S = (1.0, 2.0, 4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.commands.turned_back")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(arguments)
    run = RunFiles(given.run_folder)
    try:
        config: dict[str, Any] = read_json(run.attempt(given.attempt).plan)["config"]
        section = config["checkpoint"]["remote"]
        url = joined(section["url"], config["run"]["name"])
        store = open_store(url, section["options"])
        tell(Patient(store, delays_s=_DELAYS_S), run, url=url)
    except (LonghaulError, OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return int(Exit.FAILED)
    return int(Exit.DONE)


def tell(store: ObjectStore, run: RunFiles, *, url: str) -> None:
    """Raises: OSError, ValueError, CheckpointError, RunFolderError."""
    mine = read_withdrawals(run.withdrawn)
    if not mine:
        return
    if store.size(RUN_JSON) is None:
        if (known := copied_to(run.copies, url)) is not None:
            raise RunFolderError(emptied(run.copies, url, known))
        return
    if run_id_of(store) != read_json(run.run_json).get("run_id"):
        return  # another run's copies, which nothing of ours may change
    there = withdrawals(store)
    if (both := merged(mine, there)) != there:
        put_withdrawals(store, both)


if __name__ == "__main__":
    sys.exit(main())
