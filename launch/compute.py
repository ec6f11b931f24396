"""The door to the verbs that compute: each is a process of its own, `python -m trainer...`.

The command itself never imports torch. The child has our terminal, and its exit code is ours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.node.processes import die_with_parent
from launch.run.run_folder import DEFAULT_ROOT, find
from trainer.errors import Exit

_FLAGS = ("--json", "--average", "-h", "--help")  # all other options have a value


def compute(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m MODULE ARGUMENTS` in the foreground; its exit code.

    Ctrl-C reaches the child from the terminal and is its business; every other signal that stops
    is passed on. The child dies with us.
    """
    argv = [sys.executable, "-m", module, *arguments]
    # What it writes is its owner's alone, whatever vendor writes it.
    umask = 0o077
    child = subprocess.Popen(argv, env=_environment(), preexec_fn=die_with_parent(), umask=umask)
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda n, _: _pass_on(child, n))
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code == -signal.SIGINT:
        return Exit.INTERRUPTED
    if code < 0:
        name = signal.Signals(-code).name
        print(f"{module} was killed by signal {-code} ({name})", file=sys.stderr)
        return Exit.FAILED
    return code


def compute_on_a_run(module: str, arguments: Sequence[str]) -> int:
    """`compute` for `RUN [options]`: the run by its name, and beside it the settings of conf/, for
    those that the run's own version did not know."""
    words = with_targets(arguments, count=1)
    if not words or words[0].startswith("-"):
        return compute(module, words)  # its help, or what is missing
    from launch.settings.asked import defaults

    with config_file(defaults()) as file:
        return compute(module, [*words, "--defaults", str(file)])


@contextmanager
def config_file(config: Mapping[str, Any]) -> Iterator[Path]:
    """A resolved configuration as a file for a child; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        yield path


def target(given: str, *, root: str = DEFAULT_ROOT) -> str:
    """A path that exists as it is; else the folder of the run of that name.

    Raises: Refused with the nearest names if there is neither.
    """
    if "://" in given:  # copies of a run in another place
        return given
    if ("/" in given or given in (".", "..")) and Path(given).exists():
        return given
    if not (Path(root) / given).exists() and Path(given).exists():
        return given
    return str(find(given, root=Path(root)).root)


def with_targets(arguments: Sequence[str], *, count: int) -> list[str]:
    """The first `count` arguments name runs, checkpoints or folders: names become paths.

    A number after the first of them is a step and stays one. Options may stand before them.
    """
    found: list[str] = []
    rest = list(arguments)
    root = DEFAULT_ROOT
    if "--root" in rest[:-1]:
        at = rest.index("--root")
        root = rest[at + 1]
        del rest[at : at + 2]
    options: list[str] = []
    while rest and rest[0].startswith("-"):
        width = 1 if rest[0] in _FLAGS or "=" in rest[0] else 2
        options += rest[:width]
        del rest[:width]
    while rest and len(found) < count and not rest[0].startswith("-"):
        given = rest.pop(0)
        found.append(given if found and given.isdecimal() else target(given, root=root))
    return [*found, *options, *rest]


def _pass_on(child: subprocess.Popen[bytes], number: int) -> None:
    if number == signal.SIGINT and _in_foreground():
        return  # the terminal has told the whole group, the child too; twice would be impatient
    child.send_signal(number)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # no terminal
        return False


def _environment() -> dict[str, str]:
    env = dict(os.environ)
    env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # DeepSpeed 0.19.8 on torch 2.13
    return env
