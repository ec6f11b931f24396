"""From checked settings to a finished attempt: the flow of `train` and `resume`.

    settings -> existing run? -> preflight -> token stores -> plan -> attempt folder -> backend

Everything that can be refused is refused before the first byte is written; only then are stores
prepared (a child process) and the run folder made.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from launch.backends.table import backend_of
from launch.base import Backend, Submission
from launch.compute import compute, config_file
from launch.driving.orphans import wait_for_orphans
from launch.dry_run import DryRun
from launch.ending import say_ending, say_finished
from launch.run.copies import adopt
from launch.run.lineage import write_lineage
from launch.run.liveness import own_mark, write_mark
from launch.run.not_taken import note_if_not_taken
from launch.run.room import warn_of_little_room
from launch.run.run_folder import (
    attempts,
    create,
    locked,
    new_attempt,
    read_record,
    refuse_if_running,
)
from launch.run.status import close_old_attempts
from launch.settings.differences import as_text
from launch.stand import (
    NOTHING_LEFT,
    Standing,
    finished_at,
    frozen_hash,
    nothing_is_left,
    plan_of,
    prepares_elsewhere,
    refuse_other_tokens,
    stand,
    stores_of,
)
from trainer.config.schema import Config
from trainer.config.sections.slurm import SlurmLaunch
from trainer.epochs import in_steps
from trainer.errors import Exit, LonghaulError, Refused
from trainer.plan import RunPlan, StorePlan, write_plan
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class Made:
    """An attempt that is written down, and not yet handed over."""

    run: RunFiles
    files: AttemptFiles
    plan: RunPlan
    submission: Submission


def start(config: Config, *, backend: Backend | None = None) -> int:
    """Run one attempt to its end, or hand it over; the exit code.

    `backend` None: the one that `launch` names.

    Raises: ConfigError, Refused, RunFolderError, DataError.
    """
    standing = asked(config)
    if standing is None:
        return Exit.DONE
    backend = backend or backend_of(config.launch.kind)
    made = _made(standing, backend)
    if isinstance(made, int):
        return made
    try:
        code = backend.submit(made.submission, made.run.root, attempt=made.files.number)
    except LonghaulError as e:
        note_if_not_taken(made.run, made.files.number, e)
        raise
    if backend.in_foreground:
        say_ending(made.run, made.files, code)
    return code


def write_down(config: Config) -> int:
    """All that `start` does before ranks are started, for ranks that somebody else starts.

    Raises: as `start`; Refused where a backend would start them.
    """
    if config.launch.kind != "local":
        what = f"launch={config.launch.kind} starts its ranks itself"
        raise Refused(f"--no-start: {what}; leave it out, or take launch=local")
    standing = asked(config)
    if standing is None:
        return Exit.DONE
    made = _made(standing, backend_of("local"))
    if isinstance(made, int):
        return made
    print(f"attempt {made.files.number} of {made.run.name} is written down; to start it")
    print(
        f"  torchrun --nproc-per-node {made.plan.world_size} -m trainer.worker "
        f"{shlex.quote(str(made.run.root))} --attempt {made.files.number}"
    )
    return Exit.DONE


def _made(standing: Standing, backend: Backend) -> Made | int:
    """The attempt, written down; the exit code where there is none to start."""
    first = plan_of(standing, attempt=1, run_id="")
    backend.preflight(first)
    launch = standing.config.launch
    if isinstance(launch, SlurmLaunch) and launch.test_only:
        return Exit.DONE  # it was said what Slurm thinks of it
    look_at_the_place(standing, first)
    ready = with_stores(standing)
    return ready if isinstance(ready, int) else make_attempt(ready, backend)


def asked(config: Config) -> Standing | None:
    """What is known before anything is done; None, and said, if the run is finished.

    Raises: as `stand`.
    """
    adopt(config, frozen_hash=frozen_hash(config))
    standing = stand(config)
    if standing.run is None or not (done := finished_at(standing)):
        return standing
    if nothing_is_left(standing.run, standing.config):
        print(f"{config.run.name} is finished at step {done}; {NOTHING_LEFT}")
    else:
        say_finished(standing.run, done)
    return None


def look_at_the_place(standing: Standing, plan: RunPlan) -> None:
    """Raises: Refused if no run folder can be written there."""
    refuse_unwritable(Path(standing.config.run.root), standing.run)
    if little := warn_of_little_room(plan, standing.run):
        print(f"warning: {little}", file=sys.stderr, flush=True)


def with_stores(standing: Standing) -> Standing | int:
    """With all token stores; the exit code of a preparation that failed."""
    config = standing.config
    if standing.stores is not None or prepares_elsewhere(config):
        return standing
    stores = stores_of(config) or prepare(config)
    if isinstance(stores, int):
        return stores
    standing = replace(standing, config=in_steps(config, stores), stores=stores)
    refuse_other_tokens(standing)
    plan_of(standing, attempt=1, run_id="")  # what the data makes impossible, before the folder
    return standing


def make_attempt(standing: Standing, backend: Backend) -> Made:
    """The run's folder, if it is new, and its next attempt in it."""
    run = standing.run or _create(standing.config)
    wait_for_orphans(run)
    with locked(run):
        refuse_if_running(run, silent=standing.silent)
        close_old_attempts(run)
        files = new_attempt(run)
        write_mark(files.agent, own_mark())
    plan = plan_of(standing, attempt=files.number, run_id=read_record(run).run_id)
    submission = backend.render(plan, run_folder=str(run.root))
    write_attempt(files, plan, submission)
    write_lineage(run, files.number, world_size=plan.world_size, found=standing.differences)
    if standing.differences:
        print(as_text(run, standing.differences), file=sys.stderr, flush=True)
    return Made(run, files, plan, submission)


def dry_run(config: Config) -> DryRun:
    """What `start` would write and run. Raises: as `start`."""
    standing = stand(config)
    backend = backend_of(config.launch.kind)
    plan = next_plan(standing)
    backend.preflight(plan)
    folder = Path(config.run.root) / config.run.name
    return DryRun(
        plan=plan,
        submission=backend.render(plan, run_folder=str(folder)),
        run_folder=str(folder),
        is_new=standing.run is None,
        finished_at=finished_at(standing),
        needs_prepare=standing.stores is None and not prepares_elsewhere(config),
        differences=standing.differences,
        differences_text=as_text(standing.run, standing.differences) if standing.run else "",
    )


def next_plan(standing: Standing) -> RunPlan:
    """The plan that the next attempt would have."""
    known = attempts(standing.run) if standing.run is not None else []
    attempt = known[-1].number + 1 if known else 1
    run_id = read_record(standing.run).run_id if standing.run is not None else "(new)"
    return plan_of(standing, attempt=attempt, run_id=run_id)


def refuse_unwritable(root: Path, run: RunFiles | None) -> None:
    """Before stores are made for hours. Raises: Refused if nothing can be written there."""
    place = run.root if run is not None else root
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        Path(tempfile.mkdtemp(prefix=".longhaul-", dir=place)).rmdir()
    except OSError as e:
        raise Refused(
            f"run.root={root}: nothing can be written in {place} ({e.strerror}); "
            "choose another run.root, or make that place writable"
        ) from e


def prepare(config: Config) -> tuple[StorePlan, ...] | int:
    """The stores, or the exit code of a preparation that failed."""
    print("preparing the data", file=sys.stderr, flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="longhaul-") as folder,
        config_file(config.model_dump(mode="json")) as path,
    ):
        result = Path(folder) / "result.json"
        code = compute("trainer.commands.prepare", [str(path), "--result", str(result)])
        if code != Exit.DONE:
            return code
        answer = read_json(result)
    return tuple(StorePlan.model_validate(one) for one in answer["stores"])


def write_attempt(files: AttemptFiles, plan: RunPlan, submission: Submission) -> None:
    write_plan(files.plan, plan)
    for name, text in submission.files.items():
        path = files.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it may hold settings that are nobody else's business
        path.write_text(text, encoding="utf-8")


def _create(config: Config) -> RunFiles:
    values = config.model_dump(mode="json")
    return create(Path(config.run.root), config=values, frozen_hash=frozen_hash(config))
