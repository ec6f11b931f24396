"""Settings of the doctor's job: the user's place to run, everything else as small as it gets."""

from __future__ import annotations

from typing import Any

from launch.settings import defaults
from trainer.config.schema import Config

NAME = "doctor"  # of its run
START_S = 180.0  # a rank that does not go on for so long hangs
_COLLECTIVES_S = 600.0
_JOB_H = 0.25


def doctor_config(config: Config, *, root: str) -> Config:
    """One attempt of a run under `root`, on the user's nodes; model and data are never opened.

    Raises: pydantic's ValidationError if conf/ itself is broken.
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
    if given["resources"]["device"] == "cpu":
        values["engine"] = given["engine"]
    return Config.model_validate(values)


def _once(launch: dict[str, Any]) -> dict[str, Any]:
    """A job that nobody brings back, and that ends soon; what a kind of place lacks is not set."""
    once: dict[str, Any] = {"requeue": False, "chain": 1, "test_only": False, "spare_nodes": 0}
    limit = launch.get("time_limit_h")
    if "time_limit_h" in launch:
        once["time_limit_h"] = min(limit or _JOB_H, _JOB_H)
    return launch | {key: value for key, value in once.items() if key in launch}
