"""A rank without torch that keeps the worker's contract, so that agents are tested in milliseconds.

Run as `python -m tests.helpers.fake_worker RUN_FOLDER --attempt N`; what each rank does stands in
FAKE_BEHAVIOUR of the environment: {"0": ["wait"], "1": ["raise", "bad row"]}; {"2:1": ["wait"]} is
what rank 1 does in attempt 2.

    finish           save the last step, write done.json (rank 0) and leave
    wait             until told to stop; then save (rank 0 writes a checkpoint), leave with 75
    slow SECONDS     as wait, but saving takes so long
    hang             ignore every stop signal
    raise TEXT       write error.json and leave with 76
    refuse TEXT      write error.json and leave with 78
    differ TEXT      as raise, but as a rank whose numbers were wrong
    exit CODE        leave without a word
    children         start a child and a grandchild in a session of its own, then wait
    say TEXT         print, then finish
    die STEP ...     save these steps (rank 0), then be killed
    eat              take memory once the file `eat` is in the attempt's folder
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from trainer.errors import Exit
from trainer.records.attempt import Done, ErrorRecord, Started, write_first, write_record
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles, RunFiles

_FOREVER_S = 1000.0


def main() -> int:
    run = RunFiles(Path(sys.argv[1]))
    files = run.attempt(int(sys.argv[3]))
    rank = int(os.environ["RANK"])
    behaviours = json.loads(os.environ["FAKE_BEHAVIOUR"])
    what, *rest = behaviours.get(f"{files.number}:{rank}", behaviours[str(rank)])
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda n, _: None if what == "hang" else told.append(n))
    if rank == 0:
        _say_started(files)
    if what == "children":
        _start_children(files.root)
    _say_up(files.root, rank)
    if what in ("finish", "say"):
        return _finish(run, files, rank, rest)
    if what in ("eat", "die"):
        _end_badly(run, files, what, rest if rank == 0 else [])
    if what == "exit":
        print("about to leave", file=sys.stderr, flush=True)
        return int(rest[0])
    if what in ("raise", "refuse", "differ"):
        return _fail(files, rank, what, rest[0])
    _await(told)
    (files.root / f"told-{rank}").write_text(" ".join(map(str, told)))
    if what == "slow":
        _sleep(float(rest[0]))
    if rank == 0:
        _save(run, 5)
    return Exit.SAVED


def _await(told: list[int]) -> None:
    deadline = time.monotonic() + _FOREVER_S
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)


def _sleep(seconds: float) -> None:
    """A signal does not cut it short."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def _say_started(files: AttemptFiles) -> None:
    world_size, host = int(os.environ["WORLD_SIZE"]), socket.gethostname()
    write_record(files.started, Started(time.time(), 0, world_size, host))


def _say_up(folder: Path, rank: int) -> None:
    """Whole or not there: a test reads the pid in it as soon as it sees the file."""
    incoming = folder / f"up-{rank}.incoming"
    incoming.write_text(str(os.getpid()))
    incoming.rename(folder / f"up-{rank}")


def _eat(files: AttemptFiles) -> None:
    while not (files.root / "eat").exists():
        time.sleep(0.01)
    taken = []
    while True:
        taken.append(b"x" * (1 << 20))


def _end_badly(run: RunFiles, files: AttemptFiles, what: str, steps: list[str]) -> None:
    if what == "eat":
        _eat(files)
    for step in steps:
        _save(run, int(step))
    os.kill(os.getpid(), signal.SIGKILL)


def _save(run: RunFiles, step: int) -> None:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")


def _finish(run: RunFiles, files: AttemptFiles, rank: int, words: list[str]) -> Exit:
    if sys.stdout.isatty():
        print("a terminal: True", flush=True)
    print(*words, flush=True)
    if rank == 0:
        _save(run, _total(files))
        write_record(files.done, Done(time=time.time(), step=_total(files), loss=1.5))
    return Exit.DONE


def _fail(files: AttemptFiles, rank: int, what: str, message: str) -> Exit:
    code = Exit.STOP if what == "refuse" else Exit.FAILED
    error = ErrorRecord(
        time=time.time(),
        rank=rank,
        host=socket.gethostname(),
        kind="ReplicasDiffer" if what == "differ" else "DataError",
        message=message,
        exit_code=code,
        step=3,
    )
    write_first(files.error, error)
    return code


def _total(files: AttemptFiles) -> int:
    return int(read_json(files.plan)["config"]["steps"]["total"]) if files.plan.exists() else 7


def _start_children(folder: Path) -> None:
    """One plain child, and one that leaves our session and ignores SIGTERM."""
    sleep = f"import time; time.sleep({_FOREVER_S})"
    stubborn = f"import signal; signal.signal(15, signal.SIG_IGN); {sleep}"
    one = subprocess.Popen([sys.executable, "-S", "-c", sleep])
    two = subprocess.Popen([sys.executable, "-S", "-c", stubborn], start_new_session=True)
    (folder / "children").write_text(f"{one.pid} {two.pid}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as the worker: while an interpreter ends, one more signal would end it first
