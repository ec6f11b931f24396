"""How the package gets onto a rented machine. Pure."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from trainer.config.sections.cloud import CloudLaunch

_FOLDER = "~/.longhaul-package"  # of the machine


def is_wheel(package: str) -> bool:
    """A file of this machine, which is sent."""
    return package.endswith(".whl") and "://" not in package


def sent_files(launch: CloudLaunch) -> dict[str, str]:
    """File on the machine -> file here."""
    if launch.package is None or not is_wheel(launch.package):
        return {}
    return {f"{_FOLDER}/{PurePath(launch.package).name}": launch.package}


def install_lines(launch: CloudLaunch, *more: str) -> list[str]:
    """Lines of shell; `more`: what is installed with the package. None if the machine has it."""
    if launch.package is None:
        return []
    # A tilde in quotes is no home; the name of the file is quoted, the folder is ours.
    sent = [f"{_FOLDER}/{shlex.quote(PurePath(path).name)}" for path in sent_files(launch)]
    words = [launch.python, "-m", "pip", "install", "--quiet", *more]
    return [" ".join([shlex.join(words), *(sent or [shlex.quote(launch.package)])])]
