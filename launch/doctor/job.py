"""The doctor's ranks, through the backend that `launch` names: an attempt as any other.

    settings -> plan -> run folder under run.root -> render, submit, wait -> doctor.json

Only the module of the ranks differs from a training's: trainer.doctor.rank.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from launch.backends.table import backend_of
from launch.base import Backend, JobState
from launch.doctor.settings import NAME, doctor_config
from launch.node.failure import read_failure
from launch.run.run_folder import create, new_attempt, read_record
from launch.stand import Standing, frozen_hash, plan_of
from launch.start import write_attempt
from trainer.config.schema import Config
from trainer.errors import Refused
from trainer.health.finding import Finding
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles, RunFiles

_RANKS = "trainer.doctor.rank"
_REQUEST = "doctor.json"  # of the attempt, for the ranks
_RESULT = "doctor.json"  # of the run folder, by rank 0
_POLL_S = 2.0
_STOP_S = 60.0  # for ranks to be ended
_SILENCE_S = 30.0  # from a job's end to its files, as a shared disk may show them late


@dataclass(frozen=True)
class Request:
    """`expected_bytes_per_s`: of the all-reduce between nodes; None: from the links' speed."""

    pairs: bool = False
    expected_bytes_per_s: float | None = None
    megabytes: tuple[int, ...] = (1, 16)


@dataclass(frozen=True)
class Examined:
    """`result` None: the job did not come to its end; `early`: what nodes wrote before they met.

    `device`: what `resources.device` means where the ranks are, which may not be so here.
    """

    result: dict[str, Any] | None
    device: Literal["cpu", "cuda"]
    early: list[dict[str, Any]] = field(default_factory=list)
    failure: Finding | None = None


def examine(config: Config, request: Request) -> Examined:
    """Run the job and wait for it.

    Raises: Refused or ConfigError if it cannot be started as asked; KeyboardInterrupt stops it.
    """
    backend = _backend(config.launch.kind)
    root = Path(config.run.root)
    with _folder_under(root) as folder:
        small = doctor_config(config, root=str(folder))
        standing = Standing(small, None, None)
        backend.preflight(plan_of(standing, attempt=1, run_id=""))
        values = small.model_dump(mode="json")
        run = create(folder, config=values, frozen_hash=frozen_hash(small))
        files = new_attempt(run)
        plan = plan_of(standing, attempt=files.number, run_id=read_record(run).run_id)
        submission = backend.render(plan, run_folder=str(run.root))
        write_attempt(files, plan, submission)
        write_json(files.root / _REQUEST, _asked(request))
        _say(f"launch={backend.name}, ranks: {plan.world_size}, nodes: {small.resources.nodes}")
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table, or for JSON alone
            backend.submit(submission, run.root, attempt=files.number)
        if not backend.in_foreground:
            _wait(backend, run, files)
        if files.stop.exists():  # Ctrl-C: the ranks were told, and there is nothing to judge
            raise KeyboardInterrupt
        return _examined(run, files, device=plan.device)


def _backend(kind: str) -> Backend:
    backend: Any = backend_of(kind)
    if not hasattr(backend, "module"):
        raise Refused(
            f"launch={kind} cannot carry the doctor's ranks yet; longhaul doctor --here looks at "
            "this machine alone"
        )
    carrying: Backend = replace(backend, module=_RANKS)
    return carrying


@contextlib.contextmanager
def _folder_under(root: Path) -> Iterator[Path]:
    """A hidden folder on the disk that runs will lie on. It goes, and what was made for it too,
    unless the job ended without a result: then its logs are wanted.

    Raises: Refused if nothing can be written there.
    """
    made = [one for one in (root, *root.parents) if not one.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root)).resolve()
    except OSError as e:
        raise Refused(f"run.root={root}: nothing can be written there ({e.strerror})") from e
    keeps = False
    try:
        yield folder
        keeps = not (folder / NAME / _RESULT).exists()
    finally:
        if not keeps:
            shutil.rmtree(folder, ignore_errors=True)
        for one in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                one.rmdir()


def _wait(backend: Backend, run: RunFiles, files: AttemptFiles) -> None:
    """Until the job has ended; or a while longer, if it ended and rank 0's file is not seen yet."""
    over_at, said = None, None
    try:
        while True:
            (job,) = backend.jobs([files])
            if job.state is not said:
                said = job.state
                _say(f"{said.value}{': ' if job.why else ''}{job.why}")
            has_result = (run.root / _RESULT).exists()
            if job.state is JobState.ENDED and (has_result or files.error.exists()):
                return
            if job.state is JobState.ENDED or has_result:
                over_at = over_at or time.monotonic()
                if time.monotonic() - over_at > _SILENCE_S:
                    return
            list(run.root.iterdir())  # NFS: a folder that is read shows its new names sooner
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        backend.stop(files)
        _until_over(backend, files)
        raise


def _until_over(backend: Backend, files: AttemptFiles) -> None:
    """Who carries the job writes into its folder to the end: only then may that go."""
    _say("stopping; once more Ctrl-C leaves it to itself")
    deadline = time.monotonic() + _STOP_S
    while backend.jobs([files])[0].state is not JobState.ENDED and time.monotonic() < deadline:
        time.sleep(_POLL_S / 4)


def _examined(run: RunFiles, files: AttemptFiles, *, device: Literal["cpu", "cuda"]) -> Examined:
    known = [read_json(path) for path in sorted(files.root.glob("node-*.json"), reverse=True)]
    early = list({one["node"]: one for one in known}.values())[::-1]
    result = run.root / _RESULT
    if result.exists():
        return Examined(read_json(result), device, early)
    error = read_failure(files)
    if error is None:
        fix = f"what it said is in {run.root}"
        return Examined(
            None, device, early, Finding("job", "it ended without a result", "problem", fix)
        )
    lines = error.message.strip().splitlines()
    first = " ... ".join(line.strip() for line in dict.fromkeys((lines[0], lines[-1])))
    log = files.rank_log(error.rank)
    said = f"rank {error.rank} on {error.host}: {error.kind}: {first}; its log: {log}"
    node = next((one["node"] for one in early if one["host"] == error.host), error.host)
    return Examined(
        None, device, early, Finding("job", said, "problem", _HINTS.get(error.kind, ""), node)
    )


_HINTS = {
    "Hung": "that rank stands still: its node, or the way to it",
    "Killed": "the kernel's log there (dmesg): out of memory?",
    "WorldError": "name resolution, firewalls, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME",
}


def _asked(request: Request) -> dict[str, Any]:
    return {
        "pairs": request.pairs,
        "expected_bytes_per_s": request.expected_bytes_per_s,
        "megabytes": list(request.megabytes),
    }


def _say(text: str) -> None:
    print(f"doctor: {text}", file=sys.stderr, flush=True)
