"""The door to foreign files: each is read by a process of its own (child.py), and answers in JSON.

Here files are only opened, and bytes of tensors are read by range: nothing is interpreted.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trainer
from trainer.errors import Refused

Range = tuple[str, int, int | None]  # "bare" or "archive", first byte, where it ends (None: all)

_ROOT = Path(trainer.__file__).resolve().parents[1]
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "import trainer.foreign.child as child; child.main()"
)
_CPU_S = 120
_WALL_S = 600.0
_ANSWER_BYTES = 512 << 20
_SAID = {signal.SIGXCPU: "it takes too long to read", signal.SIGKILL: "it takes too much to read"}


@dataclass(frozen=True)
class TensorPlace:
    """A whole or partial tensor as bytes of a file, row by row."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        product = 1
        for dim in self.shape:
            product *= dim
        return product


@dataclass(frozen=True)
class Thing:
    """An object: the class that its file names, its arguments and its state."""

    name: str
    arguments: tuple[Any, ...]
    state: Any


@dataclass
class Sandbox:
    """Reads files for one import. `missing`: what a child could not give up, for the report."""

    missing: set[str] = field(default_factory=set)

    def read(self, path: Path, ranges: Sequence[Range] = (("archive", 0, None),)) -> list[Any]:
        """What stands in these ranges: dicts, lists, tuples of pairs, Things and TensorPlaces.

        Raises: Refused, with the file and the reason.
        """
        descriptor = open_plainly(path)
        try:
            answer = _ask(path, descriptor, ranges)
        finally:
            os.close(descriptor)
        self.missing |= {str(what) for what in answer.get("missing", ())}
        if "refused" in answer:
            raise Refused(f"{path} is not imported: {answer['refused']}")
        return [_understood(one, path) for one in answer["answers"]]


def open_plainly(path: Path) -> int:
    """A descriptor of a regular file that is no link. Raises: Refused."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as e:
        what = "it is a link" if e.errno == errno.ELOOP else e.strerror
        raise Refused(f"{path} cannot be read: {what}") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} cannot be read: it is no file")
    return descriptor


def _ask(path: Path, descriptor: int, ranges: Sequence[Range]) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(_ROOT), str(descriptor), str(_CPU_S)]
    child = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
        pass_fds=(descriptor,),
        start_new_session=True,
    )
    try:
        said, complaint = child.communicate(json.dumps(list(ranges)).encode(), timeout=_WALL_S)
    except subprocess.TimeoutExpired as e:
        child.kill()
        child.communicate()
        raise Refused(f"{path} is not imported: it takes too long to read") from e
    if child.returncode:
        killed = signal.Signals(-child.returncode) if child.returncode < 0 else None
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        why = "it takes too much memory to read" if "MemoryError" in last else last[:200]
        raise Refused(f"{path} is not imported: {_SAID.get(killed, why) if killed else why}")
    if len(said) > _ANSWER_BYTES:
        raise Refused(f"{path} is not imported: it says too much")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _understood(value: Any, file: Path) -> Any:
    if isinstance(value, list):
        return tuple(_understood(item, file) for item in value)
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "t":
        offset, dtype, shape = inside
        return TensorPlace(file, int(offset), str(dtype), tuple(int(d) for d in shape))
    if kind == "o":
        name, arguments, state = (_understood(item, file) for item in inside)
        return Thing(name, arguments, state)
    if kind == "m":
        pairs = tuple((_understood(k, file), _understood(v, file)) for k, v in inside)
        plain = all(isinstance(k, str | int | float | bool | None) for k, _ in pairs)
        return dict(pairs) if plain else pairs
    return None
