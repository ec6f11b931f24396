"""`python -m trainer.commands.checkpoint_import SOURCE RUN_FOLDER --plan PLAN.json`.

Started by `longhaul checkpoint import`, which has made the run's folder and its plan. Exit codes: 0
imported and verified, 2 the source cannot be imported into this run, 76 or 78 writing failed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from trainer.commands.ending import ended
from trainer.errors import Exit
from trainer.records.run_files import RunFiles
from trainer.records.sizes import size_text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="longhaul checkpoint import", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--weights-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    return ended(lambda: _import(given))


def _import(given: argparse.Namespace) -> Exit:
    from trainer.foreign.importing import import_checkpoint, wanted
    from trainer.plan import read_plan

    plan = read_plan(given.plan)
    run = RunFiles(given.run_folder)
    done = import_checkpoint(
        given.source,
        run.checkpoints,
        run_id=plan.run_id,
        fragments=wanted(plan),
        weights_only=given.weights_only,
    )
    if given.json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return Exit.DONE
    what = f"{done.tensors} tensors, {done.elements:,} parameters, {size_text(done.bytes)}"
    state = "with the optimizer's state" if done.moments else "weights alone, a new optimizer"
    print(f"imported {done.what} as step {done.step} of run {run.name}: {what}; {state}")
    print("every byte of it was read back and is whole")
    if done.missing:
        print(f"the process that read it could not give up: {'; '.join(done.missing)}")
    print(f"  next: longhaul resume {run.name}")
    return Exit.DONE


if __name__ == "__main__":
    raise SystemExit(main())
