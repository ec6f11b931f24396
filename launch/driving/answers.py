"""What machines answer to launch/ssh/seen.py, judged the same however they were asked."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from trainer.errors import Refused


def other_versions(
    python: str, versions: Mapping[str, str], *, leave_out: Collection[str] = ()
) -> Iterator[tuple[str, str]]:
    """(what is wrong with them there, what to type)."""
    if not versions["longhaul"]:
        yield "this package is not installed there", "pip install longhaul, or launch.python=..."
        return
    here = sys.version.split()[0]
    if python.split(".")[:2] != here.split(".")[:2]:
        yield f"Python {python}, but {here} here", "launch.python=..., the same everywhere"
    for name, there in versions.items():
        if name not in leave_out and there != (ours := _version(name)):
            yield f"{name} {there or 'missing'}, but {ours} here", f"pip install {name}=={ours}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def table(bad: Mapping[str, Sequence[tuple[str, str]]], *, good: int, least: int, noun: str) -> str:
    """Every problem of every machine, a line each, with what to type."""
    width = max(map(len, bad))
    wanted = f"{least} {noun} are" if least > 1 else f"1 {noun.removesuffix('s')} is"
    lines = [f"{wanted} needed and {good} can take part; nothing was written"]
    for name, found in bad.items():
        for what, fix in found:
            lines += [f"  {name.ljust(width)}  {what}", f"  {' ' * width}    try: {fix}"]
    return "\n".join(lines)


def existing(folder: Path) -> Path:
    """It, or the nearest folder above it that there is: nothing is made before all is well."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


@contextmanager
def mark_in(folder: Path) -> Iterator[str]:
    """The name of a file that stands there for a while. Raises: Refused if it cannot."""
    path = folder / f".longhaul-seen-{secrets.token_hex(8)}"
    try:
        path.touch(mode=0o600)
    except OSError as e:
        raise Refused(
            f"run.root, data.store_root: nothing can be written in {folder} ({e.strerror})\n"
            "     try: run.root=... and data.store_root=... in a folder that all machines share"
        ) from e
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)
