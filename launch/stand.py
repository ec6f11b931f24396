"""How a run stands before anything is done: what is asked against what is there.

Nothing is written here; what cannot be is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.nodes_of import cores_for, device_of
from launch.outcome import complete_checkpoints, quarantined, unusual_steps
from launch.run.kept_states import has_states
from launch.run.liveness import ProcessMark
from launch.run.run_folder import attempts, existing, refuse_if_running
from launch.run.standing import free_to_start
from launch.run.status import finished_step
from launch.settings.asked import stored_values
from launch.settings.differences import as_text, differences
from trainer.capacity.folder import vocab_size_of_tokenizer
from trainer.changes import Change, class_of, refused
from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch
from trainer.config.sections.data import PretrainedTokenizer
from trainer.config.sections.training import DeepSpeedEngine
from trainer.epochs import in_steps
from trainer.errors import ConfigError, DataError, LonghaulError, Problem, Refused, RunFolderError
from trainer.faultpoints import planned
from trainer.plan import RunPlan, StorePlan
from trainer.planning import make_plan
from trainer.records.built_ops import needs_async_io
from trainer.records.json_file import read_json
from trainer.records.prepared import find_prepared, prepared_vocab_size
from trainer.records.run_files import RunFiles
from trainer.records.token_store import digests_of, read_manifest

NOTHING_LEFT = "none of its checkpoints is left, to use or to go on from"


@dataclass(frozen=True)
class Standing:
    """What is known before anything is done. `run` None: a new one."""

    config: Config
    run: RunFiles | None
    stores: tuple[StorePlan, ...] | None  # None: to be prepared
    silent: ProcessMark | None = None  # the run's agent, of which nothing more is to be expected
    differences: tuple[Change, ...] = ()  # from the run's newest attempt


def stand(config: Config) -> Standing:
    """Raises: ConfigError, Refused or RunFolderError if the run cannot be started like this."""
    planned(os.environ, enabled=config.drills.enabled)
    _refuse_without_async_io(config)
    run = existing(Path(config.run.root), config.run.name)
    mode, takeover = config.resume.mode, config.resume.takeover
    # Of this command alone: stored, it would take the run over again at every later start.
    resume = config.resume.model_copy(update={"takeover": False})
    config = config.model_copy(update={"resume": resume})
    silent, found = None, list[Change]()
    if run is None and mode == "must":
        folder = Path(config.run.root) / config.run.name
        raise Refused(f"resume=must, but there is no run {folder}; start it with resume=auto")
    if run is not None:
        if mode == "never":
            raise Refused(f"resume=never, but the run {run.root} exists; {_besides(run, config)}")
        config = _in_steps(config, run)
        silent = free_to_start(run, lease_s=config.restart.lease_s, takeover=takeover)
        refuse_if_running(run, silent=silent)
        found = _differences(run, config)
        _refuse_a_shell(run, config, found)
        _refuse_another_run(run, config, found)
    stores = stores_of(config)
    config = in_steps(config, stores or ())
    standing = Standing(config, run, stores, silent, tuple(found))
    refuse_other_tokens(standing)
    return standing


def _in_steps(config: Config, run: RunFiles) -> Config:
    """What is asked, comparable with a run whose steps were counted."""
    if config.steps.epochs is None:
        return config
    last = tuple(StorePlan.model_validate(one) for one in _last_stores(run))
    return in_steps(config, stores_of(config) or last)


def plan_of(standing: Standing, *, attempt: int, run_id: str) -> RunPlan:
    """Raises: ConfigError for what this machine or the tokenizer makes impossible."""
    config, stores = standing.config, standing.stores
    if stores is not None:
        data = config.data.model_dump(mode="json")
        tokens: int | None = prepared_vocab_size(Path(stores[0].path), data=data)
    elif isinstance(config.data.tokenizer, PretrainedTokenizer):
        tokens = vocab_size_of_tokenizer(Path(config.data.tokenizer.path))
    else:
        tokens = None
    return make_plan(
        config,
        attempt=attempt,
        run_id=run_id,
        stores=stores or (),
        device=device_of(config),
        cores=cores_for(config),
        vocab_size_of_tokenizer=tokens,
    )


def frozen_hash(config: Config) -> str:
    """Over the settings that no attempt of the run may change; trainer/changes.py says which."""
    frozen = {k: v for k, v in _leaves(config.model_dump(mode="json")) if _is_frozen(k)}
    return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()


def differences_text(config: Config) -> str:
    """How a run of that name differs, if there is one; for people."""
    with suppress(LonghaulError):  # `plan` answers all the same; `train` will say it
        run = existing(Path(config.run.root), config.run.name)
        if run is not None:
            return as_text(run, _differences(run, config))
    return ""


def stores_of(config: Config) -> tuple[StorePlan, ...] | None:
    """The stores that are there; None: to be prepared. Raises: Refused without a corpus."""
    try:
        elsewhere = prepares_elsewhere(config)
        ready = None if elsewhere else find_prepared(config.model_dump(mode="json"))
    except DataError as e:  # a corpus file that is not there: nothing has been written yet
        raise Refused(str(e)) from e
    return None if ready is None else tuple(StorePlan(**asdict(one)) for one in ready)


def prepares_elsewhere(config: Config) -> bool:
    """A rented machine has its own disk: it makes its own token stores."""
    return isinstance(config.launch, CloudLaunch)


def _is_frozen(key: str) -> bool:
    return class_of(key)[0] == "frozen"


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inner = isinstance(value, dict)
        found += _leaves(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return found


def _stored(run: RunFiles) -> Config:
    try:
        return Config.model_validate(stored_values(run))
    except ValueError as e:
        raise RunFolderError(
            f"{run.root} was written by another version of Longhaul: "
            f"its settings cannot be read here ({str(e).splitlines()[0]})"
        ) from e


def _refuse_without_async_io(config: Config) -> None:
    """Raises: ConfigError if the settings swap state to a disk and this machine cannot."""
    engine = config.engine
    if prepares_elsewhere(config):
        return  # whether that one can is seen there
    if isinstance(engine, DeepSpeedEngine) and "nvme" in (
        engine.offload_optimizer,
        engine.offload_parameters,
    ):
        needs_async_io(device_of(config))
        if not Path(str(engine.nvme_path)).is_dir():
            what = f"there is no folder {engine.nvme_path} to swap to"
            raise ConfigError(
                [Problem("engine.nvme_path", what, "engine.nvme_path=/local/scratch")]
            )


def _differences(run: RunFiles, config: Config) -> list[Change]:
    stores = tuple(StorePlan.model_validate(one) for one in _last_stores(run))

    def planned_with(settings: Config) -> RunPlan:
        return plan_of(Standing(settings, run, stores or None), attempt=1, run_id="")

    return differences(run, _stored(run), config, plan_of=planned_with)


def _refuse_a_shell(run: RunFiles, config: Config, found: list[Change]) -> None:
    """Raises: Refused if more is asked of a finished run than there is to go on from."""
    done = finished_step(run)
    asks_more = done and (config.steps.total > done or refused(found, config.resume.allow))
    if asks_more and nothing_is_left(run, config):
        raise Refused(
            f"{run.root} finished at step {done}; {NOTHING_LEFT}: begin another run "
            f"(another run.name), or move {run.root} out of the way"
        )


def _refuse_another_run(run: RunFiles, config: Config, found: list[Change]) -> None:
    """Raises: ConfigError if these settings are not those of the run, in what may not change."""
    problems = refused(found, config.resume.allow)
    if not problems:
        return
    if _is_worthless(run, config):
        others = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        what = f"{run.root} is a run with another {problems[0].where}{others}, and saved nothing"
        fix = f"another run.name, or longhaul runs gc {run.root} --failed --yes, which frees this"
        if not attempts(run):
            fix = f"another run.name, or remove the folder {run.root}: nothing was started in it"
        raise ConfigError([Problem("run.name", what, fix)])
    what = f"{run.root} is a run with other settings; it cannot go on with these"
    first = Problem("run.name", what, "another run.name, or what is said below")
    raise ConfigError([first, *problems])


def _is_worthless(run: RunFiles, config: Config) -> bool:
    """Whether nothing is lost with it: no checkpoint anywhere, not in quarantine; not finished."""
    aside = quarantined(run) or unusual_steps(run)
    return not finished_step(run) and not aside and nothing_is_left(run, config)


def nothing_is_left(run: RunFiles, config: Config) -> bool:
    """No checkpoint here, none elsewhere, and no state in this machine's memory.

    Step 0 is one: it is there only where it was imported.
    """
    elsewhere = config.checkpoint.remote.url or _stored(run).checkpoint.remote.url
    copied = elsewhere or run.copies.exists()  # to a place that the settings name no more
    return not complete_checkpoints(run) and not copied and not has_states(run)


def _besides(run: RunFiles, config: Config) -> str:
    """What can be done about a run that is there and is not to be gone on with."""
    anew = f"choose another run.name, or move {run.root} out of the way"
    if nothing_is_left(run, config) and quarantined(run):
        return f"{anew}: all its checkpoints are in quarantine, so it cannot go on"
    return f"{anew}, or go on with it: resume=auto"


def finished_at(standing: Standing) -> int:
    """The step at which the run is finished for what is asked; 0: there is something to do."""
    if standing.run is None:
        return 0
    done = finished_step(standing.run)
    return done if done >= standing.config.steps.total else 0


def refuse_other_tokens(standing: Standing) -> None:
    """Raises: ConfigError if a store differs from the one the run was trained on so far."""
    if standing.run is None or standing.stores is None:
        return
    before = {s["source"]: s["manifest_digest"] for s in _last_stores(standing.run)}
    problems = []
    for store in standing.stores:
        known = before.get(store.source)
        where = f"data.sources.{store.source}"
        is_it = known in (None, store.manifest_digest) or _is_older_name(known, store)
        if is_it or where in standing.config.resume.allow:
            continue
        what = "its text or its tokenizer has changed since the run was started"
        fix = f"another run.name, or resume.allow=[{where}]"
        problems.append(Problem(where, what, fix))
    if problems:
        raise ConfigError(problems)


def _is_older_name(digest: str, store: StorePlan) -> bool:
    """Whether an older plan knows this very store by its manifest file's digest."""
    folder = Path(store.path)
    try:
        return digest in digests_of(folder, read_manifest(folder))
    except (DataError, OSError):  # a store of examples
        return False


def _last_stores(run: RunFiles) -> list[Mapping[str, Any]]:
    """As plain values: the plan around them may be one of an older version."""
    for files in reversed(attempts(run)):
        with suppress(FileNotFoundError, ValueError, KeyError):  # ended before it, or damaged
            stores: list[Mapping[str, Any]] = read_json(files.plan)["stores"]
            return stores
    return []
