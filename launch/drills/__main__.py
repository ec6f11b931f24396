"""python -m launch.drills [D3 D12 ...] [--short] [--write docs/drills.md]: break runs, judge them.

Exit code 0 if every drill that ran held, 78 otherwise. Drills that mostly wait come first, with
others beside them (launch/drills/lanes.py).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launch.drills.bench import Bench, Drill, Ran, run_one
from launch.drills.lanes import Aside, lanes
from launch.drills.report import Kept, headlines, keep, merged, page, table
from launch.drills.runs import Site
from launch.drills.table import DRILLS
from launch.machine import num_cores, num_gpus
from trainer.errors import Exit, LonghaulError, Refused


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.drills", description=__doc__)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help="D12; all without any")
    parser.add_argument("--short", action="store_true", help="fewer cases, as in `make test`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="do it in this folder and leave it there")
    parser.add_argument("--write", type=Path, help="write the page here, results beside it")
    given = parser.parse_args(argv)
    try:
        wanted = [d for d in DRILLS if not given.drills or d.label in given.drills]
        unknown = set(given.drills) - {d.label for d in DRILLS}
        if unknown:
            raise Refused(f"no drill {min(unknown)}; there is {', '.join(d.label for d in DRILLS)}")
        return _session(given, wanted)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)


def _session(given: argparse.Namespace, wanted: Sequence[Drill]) -> int:
    here, aside = lanes(wanted)
    options = [f"--seed={given.seed}", *(["--short"] if given.short else [])]
    options += [f"--keep={given.keep / 'aside'}"] if given.keep else []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="longhaul-drills-"))
        site = stack.enter_context(Site(given.keep or Path(folder)))
        bench = Bench(site, short=given.short, seed=given.seed)
        print(f"reference: {bench.reference.step_s * 1000:.0f} ms a step", flush=True)
        other = stack.enter_context(Aside(aside, *options, write=given.write))
        ran = []
        for drill in here:
            if drill.pace != "waits":
                other.wait()  # nothing goes on beside what is held against seconds
            ran.append(run_one(bench, drill))
            print(table(ran[-1:]), flush=True)
            if given.write is not None:  # at once: it may be ended before its end
                write(given.write, ran[-1:], short=given.short)
        held = other.wait()
    print("\n".join(["", *headlines(bench.figures)]))
    return Exit.DONE if held and not any(one.is_bad for one in ran) else Exit.STOP


def write(path: Path, ran: Sequence[Ran], *, short: bool) -> None:
    """The page, and beside it the results it is made of; what was not run now stays as it was."""
    date, where = time.strftime("%Y-%m-%d"), machine()
    new = [keep(one, short=short, date=date, machine=where) for one in ran if one.result]
    records = path.with_suffix(".json")
    with _alone_in(path.parent):
        old = json.loads(records.read_text(encoding="utf-8")) if records.exists() else []
        values = merged(old, new)
        records.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        path.write_text(page(DRILLS, [Kept(**one) for one in values]), encoding="utf-8")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two lanes write one page."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def machine() -> str:
    """The class of this machine, not its name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = f"{num_gpus()} GPUs" if num_gpus() else "no GPU"
    return (
        f"{num_cores()} {platform.machine()} cores, {memory:.0f} GiB, {gpus}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main())
