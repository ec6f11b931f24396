"""Where configuration files are: conf/ beside or inside the package, and the user's folders.

Groups and choices are folders and files, so listing them needs no Hydra: the completion and the
messages use this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import Refused


def conf_folder() -> Path:
    """conf/ of the repository, or its copy in an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "_conf"
    return installed if installed.is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class Folders:
    """`main` is conf/; `extra` are the user's, in the order given. The first with a file wins."""

    main: Path
    extra: tuple[Path, ...] = ()

    @classmethod
    def find(cls, config_dirs: Sequence[str] = ()) -> Folders:
        """Raises: Refused if a folder of --config-dir is not there."""
        extra = tuple(Path(folder).expanduser().resolve() for folder in config_dirs)
        for given, folder in zip(config_dirs, extra, strict=True):
            if not folder.is_dir():
                raise Refused(f"--config-dir {given}: there is no such folder")
        return cls(conf_folder(), extra)

    def all(self) -> tuple[Path, ...]:
        return (self.main, *self.extra)

    def is_group(self, name: str) -> bool:
        return bool(name) and "." not in name and any((f / name).is_dir() for f in self.all())

    def choices(self, group: str) -> list[str]:
        """Names of a group's files, sorted; files with a leading underscore are building blocks."""
        return sorted(
            {
                path.stem
                for folder in self.all()
                for path in (folder / group).glob("*.yaml")
                if not path.name.startswith("_")
            }
        )

    def groups(self) -> list[str]:
        """Those of a run's settings: `sweep` is of `longhaul sweep` alone."""
        return sorted(
            {
                path.relative_to(folder).as_posix()
                for folder in self.all()
                for path in _folders_below(folder)
                if any(path.glob("*.yaml")) and path != folder / "sweep"
            }
        )

    def file(self, config_path: str) -> Path | None:
        for folder in self.all():
            path = folder / f"{config_path}.yaml"
            if path.is_file():
                return path
        return None

    def display(self, path: Path) -> str:
        """A path as a person would write it: conf/model/x.yaml, or the user's file in full."""
        if path.is_relative_to(self.main):
            return f"conf/{path.relative_to(self.main).as_posix()}"
        return str(path)


def _folders_below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith((".", "_")):
            yield path
            yield from _folders_below(path)
