"""conf/ as Hydra reads it, by libyaml instead of PyYAML's own parser: a fifth of a composition.

Only conf/ itself comes through here. Files of a user's folders keep Hydra's reader, which refuses
keys that come twice and brackets without end; a test reads every file of conf/ in both ways.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from launch.settings.choices import conf_folder

# What belongs to Hydra's own programs: logging, help, launchers. Nothing here asks for it, and
# reading and merging it is a quarter of a composition.
NOT_HYDRAS_OWN = tuple(
    f"~hydra/{group}"
    for group in (
        "env",
        "help",
        "hydra_help",
        "hydra_logging",
        "job_logging",
        "launcher",
        "output",
        "sweeper",
    )
)


def read_conf_quickly() -> None:
    """From now on Hydra reads its main folder with `ConfSource`; again is nothing."""
    Plugins.instance().register(ConfSource)
    Plugins.instance().register(_MainFolder)


class ConfSource(FileConfigSource):
    """Files below FOLDER, which is given as `conf://FOLDER`."""

    @staticmethod
    def scheme() -> str:
        return "conf"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.exists():
            raise ConfigLoadError(f"Config not found : {path}")
        text = path.read_text(encoding="utf-8")
        return ConfigResult(
            config=OmegaConf.create(_loader()(text).get_single_data() or {}),
            path=f"conf://{self.path}",
            provider=self.provider,
            header=ConfigSource._get_header_dict(text[:512]),
        )


class _MainFolder(SearchPathPlugin):
    """Hydra's way to say that conf/ is read by `ConfSource`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for element in search_path.get_path():
            if element.path == str(conf_folder()):
                element.path = f"conf://{element.path}"


@cache
def _loader() -> Any:
    """libyaml's parser under OmegaConf's rules of what is a number; else PyYAML's."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    return Loader
