"""longhaul runs list|rename|move|gc|fetch: folders and disk in order."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from launch.run.copies import look, restore
from launch.run.housekeeping import disk_bytes, move, remove, rename, rubbish
from launch.run.run_folder import DEFAULT_ROOT, find, list_runs, read_record, typed_name
from launch.run.standing import standings
from launch.run.status import status_of
from launch.table import age_text, show
from trainer.errors import Refused
from trainer.records.run_files import RunFiles
from trainer.records.sizes import size_text

_EPILOG = """\
examples
  longhaul runs list --json
  longhaul runs rename first-run baseline
  longhaul runs move baseline /archive/runs
  longhaul runs gc                     lists what would go; --yes removes it
  longhaul runs gc old-run --keep 1    fewer checkpoints than the run itself keeps
  longhaul runs fetch s3://bucket/runs baseline    then: longhaul resume baseline
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul runs",
        description="Run folders and their disk.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|rename|move|gc|fetch")
    one = verbs.add_parser("list", parents=[common], help="all runs under --root")
    one.add_argument("--json", action="store_true")
    one = verbs.add_parser("rename", parents=[common], help="another name, same place")
    one.add_argument("run")
    one.add_argument("name")
    one = verbs.add_parser("move", parents=[common], help="another folder of runs")
    one.add_argument("run")
    one.add_argument("folder", type=Path)
    one = verbs.add_parser("gc", parents=[common], help="what can go, and its size")
    one.add_argument("run", nargs="*", help="default: all under --root")
    one.add_argument(
        "--keep", type=int, help="newest checkpoints that stay (the run's checkpoint.keep_last)"
    )
    one.add_argument("--failed", action="store_true", help="also whole runs that saved nothing")
    one.add_argument("--yes", action="store_true", help="remove what is listed")
    one.add_argument("--json", action="store_true")
    one = verbs.add_parser("fetch", parents=[common], help="the folder of a run that has copies")
    one.add_argument("url", help="checkpoint.remote.url of the run")
    one.add_argument("name")
    given = parser.parse_args(argv)
    verbs_of = {"list": _list, "rename": _rename, "move": _move, "gc": _gc, "fetch": _fetch}
    act = verbs_of[given.verb]
    return act(given)


def _list(given: argparse.Namespace) -> int:
    rows = []
    runs = list_runs(Path(given.root))
    for run, now in zip(runs, standings(runs), strict=True):
        status, record = status_of(run, now.job), read_record(run)
        age, size = time.time() - record.created, disk_bytes(run.root)
        row: dict[str, Any] = {"run": run.name, "id": record.run_id}
        row["state"] = status.state if given.json else status.state_text
        row["step"] = status.step
        row["created"] = record.created if given.json else f"{age_text(age)} ago"
        row["size"] = size if given.json else size_text(size)
        rows.append(row)
    show(rows, as_json=given.json, empty=f"no runs under {given.root}/")
    return 0


def _rename(given: argparse.Namespace) -> int:
    run = find(given.run, root=Path(given.root))
    print(f"{run.root} is now {rename(run, given.name).root}")
    return 0


def _move(given: argparse.Namespace) -> int:
    run = find(given.run, root=Path(given.root))
    print(f"{run.root} is now {move(run, given.folder).root}")
    return 0


def _fetch(given: argparse.Namespace) -> int:
    run = restore(look(f"{given.url.rstrip('/')}/{given.name}"), Path(given.root), given.name)
    print(f"{run.root} is here; longhaul resume {typed_name(run)} goes on from its copies")
    return 0


def _gc(given: argparse.Namespace) -> int:
    if given.keep is not None and given.keep < 1:
        raise Refused("--keep: the newest checkpoint of a run always stays; 1 or more")
    root = Path(given.root)
    runs = [find(name, root=root) for name in given.run] or list_runs(root)
    found = rubbish(runs, keep=given.keep, failed=given.failed)
    by_name: dict[str, RunFiles] = {run.name: run for run in runs}
    rows = [
        {
            "run": one.run,
            "path": str(one.path),
            "size": one.size if given.json else size_text(one.size),
            "why": one.why,
        }
        for one in found
    ]
    show(rows, as_json=given.json, empty="nothing can go")
    if given.yes:
        for one in found:
            remove(one, by_name[one.run])
    if found and not given.json:
        total = size_text(sum(one.size for one in found))
        print(f"{total} removed" if given.yes else f"{total} in all; --yes removes it")
    return 0
