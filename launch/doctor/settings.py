"""Settings of the doctor's job: the user's place to run, everything else as small as it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.settings.asked import defaults, from_overrides, resolved
from trainer.config.explain import validate
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.health.finding import Finding

_PLACE = ("resources", "launch", "cluster", "run.")
NAME = "doctor"  # of its run
START_S = 180.0  # a rank that does not go on for so long hangs
_COLLECTIVES_S = 600.0
_JOB_H = 0.25


def asked_for(
    settings: Sequence[str], *, config_dirs: Sequence[str], root: str | None
) -> tuple[Config, list[Finding]]:
    """What the user means. A batch that does not fit the ranks is no reason not to look at nodes:
    then only the place to run is taken, and a finding says so.

    Raises: ConfigError for what makes the place itself impossible; Refused for an unknown run.
    """
    try:
        return resolved(settings, config_dirs=config_dirs, root=root), []
    except ConfigError as e:
        place = [text for text in settings if text.lstrip("+~").startswith(_PLACE)]
        if not e.problems or len(place) == len(settings) == 0:
            raise
        try:
            found = from_overrides([*place, *_fitting(place)], config_dirs=config_dirs)
        except ConfigError:
            raise e from None
        first = e.problems[0]
        fix = first.fix or "longhaul plan with the same settings tells all"
        return found, [Finding("settings", f"{first.where}: {first.what}", "warn", fix)]


def doctor_config(config: Config, *, root: str) -> Config:
    """One attempt of a run under `root`, on the user's nodes; model and data are never opened.

    Raises: ConfigError if conf/ itself is broken.
    """
    values = defaults()
    given = config.model_dump(mode="json")
    values["resources"] = given["resources"] | {"collective_timeout_s": _COLLECTIVES_S}
    values["launch"] = _once(given["launch"])
    values["run"] |= {"root": root, "name": NAME}
    world = given["resources"]["nodes"] * given["resources"]["ranks_per_node"]
    values["batch"] = {"global_batch_size": world, "micro_batch_size": 1}
    values["restart"] |= {"enabled": False, "standby": False}
    floors = [key for key, value in values["watch"].items() if key.endswith("_s") and value]
    values["watch"] |= {**dict.fromkeys(floors, START_S), "enabled": True}
    return validate(values)


def _once(launch: dict[str, Any]) -> dict[str, Any]:
    """A job that nobody brings back, and that ends soon; what a kind of place lacks is not set."""
    once: dict[str, Any] = {"requeue": False, "chain": 1, "spare_nodes": 0}
    once |= {"test_only": False, "foreground": False}
    limit = launch.get("time_limit_h")
    if "time_limit_h" in launch:
        once["time_limit_h"] = min(limit or _JOB_H, _JOB_H)
    return launch | {key: value for key, value in once.items() if key in launch}


def _fitting(place: Sequence[str]) -> list[str]:
    """A batch of one row a rank; limits of the doctor's own come later."""
    given = dict(text.partition("=")[::2] for text in place)
    counts = [given.get(f"resources.{name}", "") for name in ("nodes", "ranks_per_node")]
    nodes, ranks = (int(text) if text.isdecimal() else 2 for text in counts)
    batch = [f"batch.global_batch_size={nodes * ranks}", "batch.micro_batch_size=1"]
    return [*batch, "watch.enabled=false"]
