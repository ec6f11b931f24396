"""longhaul sync RUN: tell W&B what it could not be told while the run went on."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.run.run_folder import DEFAULT_ROOT, find
from launch.run.standing import standing
from launch.syncing.fragments import Fragment, fragments
from launch.syncing.transaction_log import cut, look
from launch.syncing.upload import upload
from launch.table import show
from trainer.errors import Refused
from trainer.records.run_files import RunFiles

_EPILOG = "examples: longhaul sync first-run --dry-run; WANDB_BASE_URL=... longhaul sync first-run"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul sync",
        description="Offline fragments of a run, one an attempt, to W&B as one run, in order. The "
        "torn end of a killed attempt is cut off (and kept beside it), or W&B would take none of "
        "what follows.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", help="name or path")
    parser.add_argument("--dry-run", action="store_true", help="what would be done")
    about = "fragments that W&B was told of while they were written too: what a kill kept from it"
    parser.add_argument("--include-online", action="store_true", help=about)
    parser.add_argument("--time-out", type=float, default=600.0, metavar="S", help="a fragment")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_args(argv)
    run = find(given.run, root=Path(given.root))
    found = fragments(run.wandb)
    if not found:
        raise Refused(f"run {run.name} has nothing for W&B: observers=wandb writes it")
    _refuse_if_running(run)
    wanted = [
        one for one in found if not one.is_synced and (given.include_online or not one.is_online)
    ]
    rows = []
    for fragment in wanted:
        rows.append(_repaired(fragment, only_look=given.dry_run))
        if not given.dry_run:
            upload(fragment, time_out_s=given.time_out)
    show(rows, as_json=given.json, empty=f"run {run.name}: W&B has been told of all {len(found)}")
    return 0


def _repaired(fragment: Fragment, *, only_look: bool) -> dict[str, object]:
    try:
        whole = look(fragment.log)
    except ValueError as e:
        raise Refused(f"{e}; move {fragment.folder} away to sync the others") from e
    if whole.is_torn and not only_look:
        cut(fragment.log, whole)
    return {
        "fragment": fragment.folder.name,
        "records": whole.records,
        "bytes": whole.end,
        "cut_off": whole.size - whole.end,
        "why": "damaged" if whole.damaged else "torn" if whole.is_torn else "",
    }


def _refuse_if_running(run: RunFiles) -> None:
    if standing(run).may_be_active:  # its newest fragment would be cut where it is being written
        raise Refused(
            f"run {run.name} may still write; sync it once `longhaul status` says it ended"
        )
