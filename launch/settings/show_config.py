"""`--cfg job`: the composed configuration as YAML that Hydra would compose to the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.compose import compose
from trainer.errors import Refused


def run(overrides: Sequence[str], config_dirs: Sequence[str] = (), what: str = "job") -> int:
    """Print the configuration. Raises: ConfigError, Refused for another `what` than job."""
    print(text(overrides, config_dirs, what=what), end="")
    return 0


def text(overrides: Sequence[str], config_dirs: Sequence[str] = (), *, what: str = "job") -> str:
    if what not in ("job", "all"):
        raise Refused(f"--cfg {what}: there is job (the composed settings)")
    return to_yaml(compose(overrides, config_dirs=config_dirs).values)


def to_yaml(values: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False, width=100))
