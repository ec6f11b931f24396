"""longhaul checkpoint list|verify|diff RUN [STEP ...] [--json]: what is saved, and is it whole.

    (RUN may be the URL of its copies for list and verify: s3://bucket/prefix/RUN)
    list RUN [STEP...]            what is stored: size, age, world, engine; leftovers, quarantine
    verify RUN [STEP...]          read every byte of these steps (without STEP: of all) and check it
    diff RUN [STEP] [OTHER] [STEP]  compare two checkpoints element by element: two steps of a run,
                                  a step and the newest, or those of two runs

Exit codes: 0 whole (diff: compared, whatever it found), 2 no such folder or step, 78 damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.checkpoint.folder import StepFolders, on_disk
from trainer.checkpoint.ranges import StoredTensors, open_step
from trainer.checkpoint.remote_steps import CHECKPOINTS, StepsView, committed, withdrawals
from trainer.checkpoint.verify import Difference, differences, verify_step
from trainer.errors import (
    CheckpointError,
    CheckpointMismatch,
    DamagedCheckpoint,
    Exit,
    LonghaulError,
    Refused,
)
from trainer.records.run_files import RunFiles
from trainer.records.sizes import size_text
from trainer.storage.local import LocalStorage
from trainer.storage.patient import Patient
from trainer.storage.remote import open_store


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        verbs = {"list": _list, "verify": _verify, "diff": _diff}
        return int(verbs[given.verb](given.places, given.json))
    except CheckpointError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(Exit.STOP)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="longhaul checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("list", "verify", "diff"))
    parser.add_argument(
        "places", nargs="+", metavar="RUN [STEP]", help="a run and steps, as in first-run 100"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def _folders(place: str) -> StepFolders:
    """A run's checkpoints: on a disk, or its copies under a URL. Raises: Refused."""
    if "://" not in place:
        return StepFolders(LocalStorage(), _checkpoints(Path(place)))
    store = Patient(open_store(place))
    try:
        copies = {one.step: one.name for one in committed(store, withdrawals(store))}
    except OSError as e:
        raise Refused(f"{place} cannot be reached: {e.strerror}") from e
    if not copies:
        raise Refused(f"{place}: no checkpoints here; give checkpoint.remote.url with /RUN.NAME")
    return StepFolders(StepsView(store, copies), CHECKPOINTS)


def _checkpoints(folder: Path) -> Path:
    """Raises: Refused if there are no checkpoints."""
    inside = RunFiles(folder).checkpoints
    root = inside if inside.is_dir() else folder
    if not root.is_dir():
        raise Refused(f"{folder}: no such folder; give a run's folder")
    if root is folder and not StepFolders(LocalStorage(), root).steps():
        raise Refused(f"{folder}: no checkpoints here; give a run's folder")
    return root


def _steps(places: Sequence[str]) -> list[int]:
    """Raises: Refused if one is not a number."""
    wrong = [text for text in places if not _is_step(text)]
    if wrong:
        raise Refused(f"{wrong[0]!r} is not a step; give a number, 100 or step-00000100")
    return [_number(text) for text in places]


def _is_step(text: str) -> bool:
    return text.removeprefix("step-").isdecimal()


def _number(text: str) -> int:
    return int(text.removeprefix("step-"))


def _list(places: Sequence[str], as_json: bool) -> Exit:
    folders = _folders(places[0])
    rows = [_row(folders, step) for step in _chosen(folders, places[1:])]
    leftovers = {"unfinished": folders.unfinished(), "quarantined": on_disk(folders)[1]}
    if as_json:
        print(json.dumps({"checkpoints": rows, **leftovers}, indent=2))
    else:
        _print_rows(rows)
        for name, found in leftovers.items():
            if found:
                print(f"{name}: {', '.join(found)}")
    return Exit.STOP if any(row["problem"] for row in rows) else Exit.DONE


def _chosen(folders: StepFolders, places: Sequence[str]) -> list[int]:
    """The steps that were named, or all. Raises: Refused if one of them is not there."""
    steps, there = _steps(places), folders.steps()
    if missing := [step for step in steps if step not in there]:
        listing = ", ".join(str(s) for s in there) or "none"
        raise Refused(f"{folders.root}: no checkpoint of step {missing[0]}; there are: {listing}")
    return steps or there


def _row(folders: StepFolders, step: int) -> dict[str, Any]:
    """What the manifest says; sizes are compared, contents are not read (that is `verify`)."""
    row: dict[str, Any] = {"step": step, "problem": "", "readable": True}
    try:
        manifest, digest = folders.manifest(step)
    except CheckpointMismatch as e:
        return {**row, "problem": str(e), "readable": False}
    except CheckpointError as e:
        return {**row, "problem": str(e)}
    inside = folders.step(step)
    wrong = [f.name for f in manifest.files if _size(folders, inside / f.name) != f.size]
    return {
        **row,
        "problem": f"{wrong[0]}: missing or of another size" if wrong else "",
        "bytes": sum(f.size for f in manifest.files),
        "created": manifest.created,
        "world_size": manifest.world_size,
        "attempt": manifest.attempt,
        "parent_step": manifest.parent_step,
        "tensors": len(manifest.tensors),
        "elements": sum(t.elements for t in manifest.tensors),
        "kinds": sorted({k for t in manifest.tensors for k in t.kinds}),
        "sha256": digest,
        "origin": dict(manifest.origin),
        "training": dict(manifest.training),
    }


def _size(folders: StepFolders, path: Path) -> int:
    try:
        file = folders.storage.open(path)
    except OSError:
        return -1
    file.close()
    return file.size


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        print("no checkpoints yet")
        return
    print(f"{'step':>10}  {'size':>9}  {'ranks':>5}  {'saved':<16}  engine")
    for row in rows:
        if "bytes" not in row:
            print(f"{row['step']:>10}  {_verdict(row['readable'])}: {row['problem']}")
            continue
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"]))
        note = f"  DAMAGED: {row['problem']}" if row["problem"] else ""
        engine = row["origin"].get("engine", "")
        size = size_text(row["bytes"])
        print(f"{row['step']:>10}  {size:>9}  {row['world_size']:>5}  {saved:<16}  {engine}{note}")


def _verify(places: Sequence[str], as_json: bool) -> Exit:
    folders = _folders(places[0])
    storage, root = folders.storage, folders.root
    steps = _chosen(folders, places[1:])
    if not steps:
        raise Refused(f"{root}: no checkpoint; there are: none")
    results = []
    for step in steps:
        result = verify_step(storage, root, step)
        results.append(result)
        if not as_json:
            rate = result.bytes / max(result.seconds, 1e-9)
            size = f"{size_text(result.bytes)} in {result.files} files, {size_text(rate)}/s"
            said = _verdict(result.readable) if result.problems else "whole"
            print(f"step {step}: {said} ({size})", flush=True)
            for problem in result.problems:
                print(f"  {problem}")
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    return Exit.STOP if any(result.problems for result in results) else Exit.DONE


def _verdict(readable: bool) -> str:
    return "DAMAGED" if readable else "OF A LATER VERSION"


def _diff(places: Sequence[str], as_json: bool) -> Exit:
    (root_a, step_a), (root_b, step_b) = _two(places)
    storage = LocalStorage()
    a, b = _opened(storage, root_a, step_a), _opened(storage, root_b, step_b)
    try:
        found = list(differences(a, b))
    except DamagedCheckpoint as e:
        raise _of_its_step(e, [(root_a, a.step), (root_b, b.step)]) from e
    apart = [d for d in found if d.differing]
    only = {
        "first": sorted(a.tensors.keys() - b.tensors.keys()),
        "second": sorted(b.tensors.keys() - a.tensors.keys()),
    }
    if as_json:
        value = {"steps": [a.step, b.step], "only_in": only, "tensors": [asdict(d) for d in found]}
        print(json.dumps(value, indent=2))
        return Exit.DONE
    for which, names in only.items():
        for name in names:
            print(f"only in the {which}: {name}")
    _print_differences(apart)
    same = len(found) - len(apart)
    print(f"steps {a.step} and {b.step}: {len(apart)} differ, {same} are bit-identical")
    return Exit.DONE


def _opened(storage: LocalStorage, root: Path, step: int | None) -> StoredTensors:
    """Raises: Refused if there is none; CheckpointError that names the step."""
    try:
        return open_step(storage, root, step)
    except CheckpointError as e:
        step = StepFolders(storage, root).steps()[-1] if step is None else step
        raise type(e)(f"{root}: step {step}: {e}") from e


def _of_its_step(error: DamagedCheckpoint, steps: Sequence[tuple[Path, int]]) -> DamagedCheckpoint:
    """The same, with the step: files of two have the same names."""
    for root, step in steps:
        if problems := verify_step(LocalStorage(), root, step).problems:
            return DamagedCheckpoint(f"{root}: step {step} is damaged: {problems[0]}")
    return error


def _two(places: Sequence[str]) -> tuple[tuple[Path, int | None], tuple[Path, int | None]]:
    """RUN A B, RUN A (and the newest), RUN OTHER, RUN A OTHER B: two folders with a step each."""
    folders = [i for i, text in enumerate(places) if i == 0 or not _is_step(text)]
    groups = [places[a:b] for a, b in pairwise([*folders, len(places)])]
    if urls := [g[0] for g in groups if "://" in g[0]]:
        raise Refused(f"{urls[0]}: diff reads disks only; longhaul runs fetch brings copies to one")
    if len(groups) == 1 and len(places) in (2, 3):
        root = _checkpoints(Path(places[0]))
        return (root, _number(places[1])), (root, _number(places[2]) if places[2:] else None)
    if len(groups) == 2 and max(map(len, groups)) <= 2:
        first, second = (
            (_checkpoints(Path(g[0])), _number(g[1]) if g[1:] else None) for g in groups
        )
        return first, second
    raise Refused(
        "diff compares two checkpoints: longhaul checkpoint diff RUN STEP [STEP], or RUN OTHER_RUN"
    )


def _print_differences(apart: Sequence[Difference]) -> None:
    if apart:
        print(f"{'largest |a-b|':>14}  {'elements':>12}  {'share':>6}  tensor")
    for d in sorted(apart, key=lambda d: -d.largest):
        share = d.differing / d.elements
        print(f"{d.largest:>14.6g}  {d.differing:>12,}  {share:>6.1%}  {d.name} {d.kind}")


if __name__ == "__main__":
    sys.exit(main())
