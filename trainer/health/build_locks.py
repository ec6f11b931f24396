"""Locks of operators that torch builds: a killed build leaves one, and later ones wait for ever.

torch.utils.cpp_extension makes the file `lock` beside the sources and holds it open while it
builds; whoever finds it waits for it to go, without a limit and without a word.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding

_DEPTH = 3  # folder / py311_cu130 / operator / lock


def extensions_folder(env: Mapping[str, str]) -> Path:
    """Where torch builds for a process of this environment."""
    given = env.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    cache = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/root")) / ".cache")
    return Path(cache) / "torch_extensions"


def gather_build_locks(env: Mapping[str, str]) -> dict[str, Any]:
    folder = extensions_folder(env)
    found = sorted(_locks(folder, _DEPTH))
    held = _open_files(found)
    now = time.time()
    locks = [
        {"path": str(one), "age_s": round(now - _made(one), 1), "holder": held.get(one)}
        for one in found
    ]
    return {
        "folder": str(folder),
        "chosen": "TORCH_EXTENSIONS_DIR" in env,
        "locks": locks,
    }


def judge_build_locks(facts: Facts) -> Iterator[Finding]:
    """One in the default folder harms other programs: our ranks build in a folder of their own."""
    for lock in facts["locks"]:
        text = f"{lock['path']}, {lock['age_s']:,.0f} s old"
        if lock["holder"] is not None:
            yield Finding("build lock", f"{text}, held by process {lock['holder']}")
            continue
        fix = (
            f"rm {lock['path']} (no process here has it open; on a shared disk look elsewhere too)"
        )
        verdict: Any = "problem" if facts["chosen"] else "warn"
        yield Finding("build lock", f"{text}, and nobody builds", verdict, fix)
    if not facts["locks"]:
        yield Finding("build locks", f"none under {facts['folder']}")


def _locks(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name == "lock" and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)
        elif depth > 1 and entry.is_dir(follow_symlinks=False):
            yield from _locks(Path(entry.path), depth - 1)


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone: it was held, and is free now
        return time.time()


def _open_files(paths: list[Path]) -> dict[Path, int]:
    """Which of `paths` a process of this machine has open, as far as we may look."""
    wanted = {str(path.resolve()): path for path in paths}
    found: dict[Path, int] = {}
    if not wanted:
        return found
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            held = {wanted[t] for t in _targets(process / "fd") if t in wanted}
            found |= dict.fromkeys(held, int(process.name))
    return found


def _targets(folder: Path) -> Iterator[str]:
    """What the descriptors of a process lead to; nothing if it has ended, or is another user's."""
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):  # closed meanwhile, as our own for this folder
                yield str(entry.readlink())
