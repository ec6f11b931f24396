"""Several runs from one command (`train -m`): everything is checked for all of them first.

On Slurm those that ask for the same go as one array; elsewhere each is carried to its end, or
handed over, before the next begins. Each has its own folder, identity and plan, as if alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launch.backends.slurm import SlurmBackend
from launch.backends.table import backend_of
from launch.base import Backend
from launch.run.copies import adopt
from launch.run.run_folder import AlreadyCarried
from launch.settings.several import Member
from launch.slurm.array import groups
from launch.stand import Standing, finished_at, frozen_hash, plan_of, stand
from launch.start import (
    Made,
    look_at_the_place,
    make_attempt,
    next_plan,
    start,
    with_stores,
)
from launch.table import show
from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch
from trainer.config.sections.ray import RayLaunch
from trainer.config.sections.slurm import SlurmLaunch
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import ConfigError, Exit, LonghaulError, Problem, Refused
from trainer.plan import RunPlan

_STOPPED = (Exit.SAVED, Exit.INTERRUPTED)  # somebody wants this to end


@dataclass(frozen=True)
class Ready:
    """A run that could be started, as far as can be told before anything is done."""

    member: Member
    standing: Standing
    plan: RunPlan


def start_many(members: Sequence[Member], *, name: str, backend: Backend | None = None) -> int:
    """The exit code: of the first run that did not end well; 0 if all were handed over.

    `name`: of them all, for people who look at the queue.

    Raises: ConfigError, Refused with the problems of all runs, before anything is written.
    """
    _refuse_side_by_side(members)
    backends = _backends(members, backend)
    ready = _ready(members, _asked)
    _preflight(ready, backends, name=name)
    if all(_only_asks(one.member.config) for one in ready):
        return Exit.DONE
    for one in ready:
        look_at_the_place(one.standing, one.plan)
    code = _submit_arrays([one for one in ready if _is_slurm(one)], backends, name=name)
    return code or _one_after_another([one for one in ready if not _is_slurm(one)], backends)


def _one_after_another(ready: Sequence[Ready], backends: dict[str, Backend]) -> int:
    """One that fails keeps no other from its turn; one that is told to stop ends them all."""
    first_bad = 0
    for one in ready:
        config = one.member.config
        print(f"\n{config.run.name}: {' '.join(one.member.chosen)}", flush=True)
        code = start(config, backend=backends[config.launch.kind])
        first_bad = first_bad or code
        if code in _STOPPED:
            break
    return first_bad


def _backends(members: Sequence[Member], given: Backend | None = None) -> dict[str, Backend]:
    kinds = {one.config.launch.kind for one in members}
    return {kind: given or backend_of(kind) for kind in kinds}


def dry_run_many(members: Sequence[Member], *, name: str, as_json: bool) -> int:
    """What `start_many` would write and run. Raises: as it."""
    _refuse_side_by_side(members)
    backends = _backends(members)
    ready = _ready(members, stand, plan_with=next_plan)
    _preflight(ready, backends, name=name)
    on_slurm = [one for one in ready if _is_slurm(one)]
    jobs = [
        _rendered([on_slurm[index] for index in group], name=name)
        for group in groups([one.plan for one in on_slurm])
    ]
    rows = [_row(one) for one in ready]
    if as_json:
        print(json.dumps({"runs": rows, "jobs": jobs}, indent=2))
        return Exit.DONE
    show(rows, as_json=False)
    for job in jobs:
        print(f"\nwould submit, for {', '.join(job['runs'])}")
        print("\n".join(f"  {line}" for line in str(job["script"]).splitlines()))
    print("\nnothing was written; --dry-run of one combination shows its own files")
    return Exit.DONE


def _row(one: Ready) -> dict[str, Any]:
    plan, done = one.plan, finished_at(one.standing)
    return {
        "run": one.member.name,
        "settings": " ".join(one.member.chosen),
        "attempt": plan.attempt,
        "ranks": plan.world_size,
        "steps": plan.config.steps.total,
        "note": f"finished at step {done}" if done else "",
    }


def _rendered(some: Sequence[Ready], *, name: str) -> dict[str, Any]:
    script = SlurmBackend().render_all([one.plan for one in some], name=name)
    return {"runs": [one.member.name for one in some], "script": script}


def _ready(
    members: Sequence[Member],
    look: Callable[[Config], Standing | None],
    *,
    plan_with: Callable[[Standing], RunPlan] | None = None,
) -> list[Ready]:
    """Those that have something to do; what is carried already is left alone, and said.

    Raises: Refused with what is wrong with any of them, or if all that is left is carried.
    """
    found: list[Ready] = []
    wrong: dict[str, list[str]] = {}
    carried: dict[str, list[str]] = {}
    for member in members:
        try:
            standing = look(member.config)
            if standing is not None:
                plan = (plan_with or _first_plan)(standing)
                found.append(Ready(member, standing, plan))
        except AlreadyCarried as e:
            carried[str(e)] = [member.name]
        except LonghaulError as e:
            wrong.setdefault(str(e), []).append(member.name)
    _refuse(wrong if found else wrong | carried, total=len(members))
    for text in carried:
        print(f"left alone: {text}", file=sys.stderr, flush=True)
    return found


def _asked(config: Config) -> Standing | None:
    adopt(config, frozen_hash=frozen_hash(config))
    standing = stand(config)
    if done := finished_at(standing):
        print(f"{config.run.name} is finished at step {done}")
    return None if done else standing


def _first_plan(standing: Standing) -> RunPlan:
    return plan_of(standing, attempt=1, run_id="")


def _preflight(ready: Sequence[Ready], backends: dict[str, Backend], *, name: str) -> None:
    """Each question once. Raises: Refused with every answer."""
    wrong: dict[str, list[str]] = {}
    seen: set[str] = set()
    for one in ready:
        backend = backends[one.member.config.launch.kind]
        if isinstance(backend, SlurmBackend) or (key := _key(one.member.config)) in seen:
            continue
        seen.add(key)
        try:
            backend.preflight(one.plan)
        except LonghaulError as e:
            wrong.setdefault(str(e), []).append(one.member.name)
    for backend in backends.values():
        if isinstance(backend, SlurmBackend):
            plans = [one.plan for one in ready if _is_slurm(one)]
            for group in groups(plans):
                try:
                    backend.preflight_all([plans[index] for index in group], name=name)
                except LonghaulError as e:
                    names = [plans[index].config.run.name for index in group]
                    wrong.setdefault(str(e), []).extend(names)
    _refuse(wrong, total=len(ready))


def _key(config: Config) -> str:
    """Runs of which a place would be asked the same."""
    if isinstance(config.launch, CloudLaunch):  # every file is judged
        return config.run.name
    parts = (config.launch, config.resources)
    return "\n".join(part.model_dump_json() for part in parts) + config.run.root


def _submit_arrays(ready: Sequence[Ready], backends: dict[str, Backend], *, name: str) -> int:
    """All token stores, then all folders, then the queue: a task may begin at once."""
    if not ready:
        return Exit.DONE
    backend = backends["slurm"]
    assert isinstance(backend, SlurmBackend)
    standings: list[Standing] = []
    for one in ready:
        standing = with_stores(one.standing)
        if isinstance(standing, int):
            return standing
        standings.append(standing)
    made = [make_attempt(standing, backend) for standing in standings]
    for group in groups([one.plan for one in made]):
        _submit([made[index] for index in group], backend, name=name)
    return Exit.DONE


def _submit(some: Sequence[Made], backend: SlurmBackend, *, name: str) -> None:
    if len(some) == 1:
        (one,) = some
        backend.submit(one.submission, one.run.root, attempt=one.files.number)
    else:
        backend.submit_all([one.plan for one in some], [one.run for one in some], name=name)


def _refuse_side_by_side(members: Sequence[Member]) -> None:
    """Raises: ConfigError for hosts that would get all runs at once."""
    for one in members:
        launch = one.config.launch
        if not isinstance(launch, SshLaunch | RayLaunch) or len(members) == 1:
            continue
        if isinstance(launch, RayLaunch) and launch.submit == "job":
            what = f"{len(members)} jobs would begin on the same nodes at once"
            fix = "launch.submit=driver launch.foreground=true"
            raise ConfigError([Problem("launch.submit", what, fix)])
        if not launch.foreground:
            what = (
                f"{len(members)} runs would begin on the same machines at once; each waits for the "
                "one before only if the command stays"
            )
            raise ConfigError([Problem("launch.foreground", what, "launch.foreground=true")])


def _refuse(wrong: dict[str, list[str]], *, total: int) -> None:
    """Raises: Refused with each text once, and whose it is."""
    if not wrong:
        return
    if total == 1 or (len(wrong) == 1 and all(len(who) == total for who in wrong.values())):
        raise Refused(next(iter(wrong)))
    texts = [f"{_whose(who)}: {text}" for text, who in wrong.items()]
    raise Refused("\n".join(["nothing was started", *texts]))


def _whose(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _is_slurm(one: Ready) -> bool:
    return isinstance(one.member.config.launch, SlurmLaunch)


def _only_asks(config: Config) -> bool:
    return isinstance(config.launch, SlurmLaunch) and config.launch.test_only
