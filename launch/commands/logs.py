"""longhaul logs RUN: what a rank printed, or why the run failed."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launch.node.failure import log_tail
from launch.run.job_record import read_job
from launch.run.run_folder import DEFAULT_ROOT, attempts, find, running
from launch.run.standing import standing
from launch.why import why_text
from trainer.errors import Refused
from trainer.records.run_files import AttemptFiles, RunFiles

_ASK_EVERY_S = 10.0
_LOOK_S = 0.2
_EPILOG = "examples: longhaul logs first-run --rank 1 --follow; longhaul logs first-run --why"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul logs", description="What a rank printed.", epilog=_EPILOG
    )
    parser.add_argument("run", help="name or path")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--attempt", type=int, help="default: the newest")
    about_why = "the first failure; of an earlier attempt, if the newest did not fail"
    parser.add_argument("--why", action="store_true", help=about_why)
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the attempt ends")
    parser.add_argument("--lines", "-n", type=int, help="only the last N lines")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_args(argv)
    run = find(given.run, root=Path(given.root))
    files = _attempt(run, given.attempt)
    if given.why:
        print(why_text(run, files, is_chosen=given.attempt is not None))
        return 0
    log, life = files.rank_log(given.rank), _Life(run, files)
    if given.follow:
        _await_logs(life)
    if not log.exists():
        raise Refused(_no_log(run, files, given.rank))
    _print(life, log, lines=given.lines, follow=given.follow)
    return 0


def _attempt(run: RunFiles, number: int | None) -> AttemptFiles:
    known = {files.number: files for files in attempts(run)}
    if not known:
        raise Refused(f"run {run.name} has not been started yet")
    wanted = max(known) if number is None else number
    if wanted not in known:
        have = ", ".join(map(str, known))
        raise Refused(f"run {run.name} has no attempt {wanted}; it has {have}")
    return known[wanted]


def _no_log(run: RunFiles, files: AttemptFiles, rank: int) -> str:
    found = sorted(int(p.stem.removeprefix("rank-")) for p in files.root.glob("rank-*.log"))
    job = standing(run).job
    if not found and job is not None:
        words = sorted(run.root.glob("slurm-*.out"))
        where = f"; the job's own words: {words[-1]}" if words else ""
        return f"attempt {files.number} has no logs yet: {job.why}{where}"
    if not found:
        return f"attempt {files.number} has no logs: no rank was started"
    return f"attempt {files.number} has no rank {rank}; it has ranks {found[0]} to {found[-1]}"


@dataclass
class _Life:
    """Whether a run goes on. Its files say at once when an attempt has ended; a scheduler is asked
    seldom: it has others to serve."""

    run: RunFiles
    files: AttemptFiles
    asked: float = 0.0

    def goes_on(self) -> bool:
        if self.files.ended.exists():
            return False
        if read_job(self.files) is None:
            return running(self.run) is not None
        if time.monotonic() - self.asked < _ASK_EVERY_S:
            return True
        self.asked = time.monotonic()
        return standing(self.run).may_be_active


def _await_logs(life: _Life) -> None:
    """Ranks may still have to start, for hours where there is a queue. It is said once."""
    has_said = False
    while life.goes_on() and not any(life.files.root.glob("rank-*.log")):
        if not has_said:
            job = standing(life.run).job
            why = f" ({job.why})" if job is not None and job.why else ""
            said = f"attempt {life.files.number} has no logs yet{why}; waiting"
            print(said, file=sys.stderr, flush=True)
        has_said = True
        time.sleep(_LOOK_S)


def _print(life: _Life, log: Path, *, lines: int | None, follow: bool) -> None:
    with log.open("rb") as file:
        if lines is not None:
            print("\n".join(log_tail(log, lines=lines, blank=True)), flush=True)
            file.seek(0, 2)
        while True:
            is_running = follow and life.goes_on()  # asked first: no last line is lost
            while data := file.read(1 << 16):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            if not is_running:
                return
            time.sleep(_LOOK_S)
