"""Settings of a run: conf/ with overrides, or those of an existing run with overrides on top."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.run.run_folder import DEFAULT_ROOT, attempts, find, read_record
from launch.settings.typed import epochs_or_total
from trainer.config.schema import Config
from trainer.errors import ConfigError, Problem
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles


def resolved(
    arguments: Sequence[str], *, config_dirs: Sequence[str] = (), root: str | None = None
) -> Config:
    """What `[RUN] [key=value ...]` means. Raises: ConfigError; Refused for an unknown run."""
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("~"):
        run = find(arguments[0], root=Path(root or DEFAULT_ROOT))
        return of_run(run, arguments[1:], config_dirs=config_dirs)
    return from_overrides(arguments, config_dirs=config_dirs)


def from_overrides(overrides: Sequence[str], *, config_dirs: Sequence[str] = ()) -> Config:
    """conf/ with overrides, checked in full. Raises: ConfigError."""
    from launch.compose import compose
    from trainer.planning import judged

    return judged(compose(overrides, config_dirs=config_dirs).values)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(settings with a leading run name, the rest): options and their values are a child's."""
    settings = [a for a in arguments if "=" in a and not a.startswith("-")]
    rest = [a for a in arguments if a not in settings]
    if rest and not rest[0].startswith("-") and arguments[0] == rest[0]:
        settings.insert(0, rest.pop(0))
    return settings, rest


def of_run(run: RunFiles, overrides: Sequence[str], *, config_dirs: Sequence[str] = ()) -> Config:
    """The settings of a run's newest attempt, changed by overrides. Raises: ConfigError."""
    from launch.compose import compose
    from trainer.planning import judged

    values = stored_values(run)
    if overrides:
        composed = compose(overrides, config_dirs=config_dirs).values
        values = overlaid(values, composed, overrides)
    # The folder may have been renamed or moved since: it is the run, whatever its settings say.
    values["run"] |= {"name": run.root.resolve().name, "root": str(run.root.parent)}
    return judged(values)


def stored_values(run: RunFiles) -> dict[str, Any]:
    """As plain values, a copy; what an older version did not know yet is as in conf/."""
    for files in reversed(attempts(run)):
        try:
            values: dict[str, Any] = read_json(files.plan)["config"]
            return completed(values)
        except (FileNotFoundError, ValueError, KeyError):
            continue  # an attempt that ended before its plan was written
    return completed(copy.deepcopy(read_record(run).config))


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with every setting that it lacks, taken from conf/; unchanged if it lacks none."""
    from trainer.config import older

    return older.completed(values, defaults)


def defaults() -> dict[str, Any]:
    """conf/ as it is, without overrides."""
    from launch.compose import compose

    return compose([]).values


def overlaid(
    values: dict[str, Any], composed: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """`values` with what the overrides name taken from `composed`.

    `engine=zero3` takes the whole section (its other keys belong to the choice), `steps.total=9`
    that one value. Raises: ConfigError for an override that only makes sense from nothing.
    """
    from trainer.config.older import at, put

    result = copy.deepcopy(values)
    problems = []
    for text in overrides:
        key = text.lstrip("+").partition("=")[0]
        path = key.replace("/", ".").split(".")
        if text.startswith("~") or path[0] in ("experiment", "debug"):
            what = "cannot be put on the settings of an existing run"
            problems.append(Problem(key.lstrip("~"), what, "key=value of each setting to change"))
            continue
        put(result, path, at(composed, path))
    if problems:
        raise ConfigError(problems)
    epochs_or_total(result, overrides)
    return result
