"""What ranks run for `longhaul verify layouts`: every layout of their world, one after another.

    python -m trainer.verify.rank RUN_FOLDER --attempt N

Reads attempts/N/plan.json and layouts.json beside it; rank 0 appends one line a layout to
RUN_FOLDER/layouts.jsonl. Started by the agent like a worker; ends with the same records.
"""

from __future__ import annotations

import argparse
import socket
import time
import traceback
from pathlib import Path

from trainer.dist.device import choose_device, use_host
from trainer.dist.world import Place, leave, meet
from trainer.errors import Exit, LonghaulError
from trainer.plan import read_plan
from trainer.records.attempt import Done, ErrorRecord, write_first, write_record
from trainer.records.json_file import append_line, read_json
from trainer.records.run_files import RunFiles
from trainer.verify.layouts import Layout, as_json, run_layout

LAYOUTS = "layouts.json"  # of an attempt: what its world is to run
RESULTS = "layouts.jsonl"  # of the run: {"layout": ..., "losses": [...]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.rank", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    run = RunFiles(given.run_folder.resolve())
    place = Place.from_env()
    try:
        return _run(run, given.attempt, place)
    except Exception as e:  # told to whoever started us, in the file that says so
        traceback.print_exc()
        code = e.exit_code if isinstance(e, LonghaulError) else Exit.FAILED
        record = ErrorRecord(
            time=time.time(),
            rank=place.rank,
            host=socket.gethostname(),
            kind=type(e).__name__,
            message=str(e),
            exit_code=int(code),
            traceback=traceback.format_exc(),
        )
        write_first(run.attempt(given.attempt).error, record)
        return int(code)


def _run(run: RunFiles, attempt: int, place: Place) -> int:
    files = run.attempt(attempt)
    plan = read_plan(files.plan)
    use_host(plan.threads_per_rank, device=plan.device)
    world = meet(place, device=choose_device(plan.device, place))
    losses: list[float] = []
    for one in read_json(files.root / LAYOUTS):
        layout = Layout(**one)
        losses = run_layout(world, plan, layout, folder=run.root / "layouts")
        if place.rank == 0:
            append_line(run.root / RESULTS, {"layout": as_json(layout), "losses": losses})
            print(f"{layout.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
    if place.rank == 0:
        write_record(files.done, Done(time.time(), plan.config.steps.total, losses[-1]))
    leave(world)
    return int(Exit.DONE)


if __name__ == "__main__":
    raise SystemExit(main())
