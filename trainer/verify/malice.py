"""Checkpoints made by an enemy: none may run code, take memory, hang, or be loaded. For drills.

    python -m trainer.verify.malice RUN SCRATCH

Each case puts one malicious step on top of a whole one and asks the run's own loader. Right is: the
whole step is loaded, or a refusal in one sentence. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from trainer.errors import LonghaulError
from trainer.records.manifest import MANIFEST_NAME
from trainer.verify.damages import Bed, Score

_PATIENCE_S = 20
_ROOM_BYTES = 512 << 20  # beyond what the process has when it begins
_HUGE = 2**62


class _TookTooLong(BaseException):
    pass


class Canary:
    """A pickle that makes a file when anybody believes it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def attack(bed: Bed, canary: Path) -> Score:
    score = Score()
    for name, case in _cases(canary).items():
        folder = bed.lay()
        case(folder)
        problem = _outcome(bed, canary)
        score.tried["malicious"] += 1
        if problem:
            score.silent.append(f"{name}: {problem}")
        else:
            score.noticed["malicious"] += 1
    return score


def _outcome(bed: Bed, canary: Path) -> str:
    """What went wrong; "" if nothing did."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(_PATIENCE_S)
    try:
        step, digest = bed.loaded()
        if digest != bed.digests.get(step):
            return f"step {step} was loaded with other values"
    except LonghaulError as e:
        if not str(e) or "\n" in str(e):
            return f"refused, but not in one sentence: {str(e)[:200]!r}"
    except _TookTooLong:
        return f"nothing came of it in {_PATIENCE_S} s"
    except Exception as e:
        return f"{type(e).__name__} instead of a refusal: {str(e)[:200]}"
    finally:
        signal.alarm(0)
    if canary.exists():
        canary.unlink()
        return "it ran code"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"it took {grown >> 20} MiB" if grown > _ROOM_BYTES else ""


def _give_up(number: int, frame: object) -> NoReturn:
    raise _TookTooLong


_Case = Callable[[Path], None]


def _cases(canary: Path) -> dict[str, _Case]:
    payload = pickle.dumps(Canary(canary))
    zipped = b"PK\x03\x04" + payload
    return {
        "a pickle as manifest": lambda f: _put(f / MANIFEST_NAME, payload),
        "a pickle as rank file": lambda f: _put(_rank(f), payload),
        "a zip of a pickle as rank file": lambda f: _put(_rank(f), zipped),
        "a pickle in a header's place": lambda f: _header(f, payload),
        "a manifest of brackets": lambda f: _put(f / MANIFEST_NAME, b"[" * 2_000_000),
        "a sealed manifest of brackets": lambda f: _seal(f, b'{"a":' + b"[" * 500_000 + b","),
        "a manifest of a terabyte": lambda f: _sparse(f / MANIFEST_NAME, 1 << 40),
        "a rank file of a terabyte": lambda f: _sparse(_rank(f), 1 << 40),
        "a number of a million digits": lambda f: _seal(f, b'{"step":' + b"9" * 1_000_000 + b","),
        "a name with ..": lambda f: _file(f, 0, "../../../rank-00000.safetensors"),
        "an absolute name": lambda f: _file(f, 0, "/etc/passwd"),
        "a name with a NUL": lambda f: _file(f, 0, "rank-00000.safetensors\0"),
        "a size of exabytes": lambda f: _file(f, 1, _HUGE),
        "a negative size": lambda f: _file(f, 1, -1),
        "a tensor of exabytes": lambda f: _tensor(f, 1, [2**26, 2**26]),
        "a shape that overflows": lambda f: _tensor(f, 1, [2**40, 2**40, 2**40]),
        "a negative shape": lambda f: _tensor(f, 1, [-1, 64]),
        "a tensor's name of megabytes": lambda f: _tensor(f, 0, "x" * 10_000_000),
        "a million files": lambda f: _edit(f, world_size=1_000_000),
        "a world of exabytes": lambda f: _edit(f, world_size=_HUGE),
        "a step of another": lambda f: _edit(f, step=7),
        "training that is no object": lambda f: _edit(f, training=[1, 2]),
        "infinity": lambda f: _edit(f, created=float("inf")),
        "a header of exabytes": lambda f: _length(f, _HUGE),
        "a header beyond the file": lambda f: _length(f, 90 << 20),
        "a header of brackets": lambda f: _header(f, b"[" * 4000),
        "a link as rank file": lambda f: _link(_rank(f), "/etc/passwd"),
        "a link as manifest": lambda f: _link(f / MANIFEST_NAME, "/etc/passwd"),
        "a pipe as rank file": lambda f: _pipe(_rank(f)),
        "a pipe as manifest": lambda f: _pipe(f / MANIFEST_NAME),
        "a folder as rank file": lambda f: _folder(_rank(f)),
        "a device as rank file": lambda f: _link(_rank(f), "/dev/zero"),
        "a link as step": _linked_step,
    }


# --- how a folder is made malicious; hard links are broken first -------------------------------


def _rank(folder: Path) -> Path:
    return folder / "rank-00000.safetensors"


def _put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _sparse(path: Path, size: int) -> None:
    _put(path, b"")
    os.truncate(path, size)


def _link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _linked_step(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    _put(_rank(elsewhere), b"other bytes")
    folder.symlink_to(elsewhere)


def _seal(folder: Path, body: bytes) -> None:
    """A manifest with this text and a digest that matches it, as an enemy would write it."""
    seal = f'"sha256":"{sha256(body).hexdigest()}"}}\n'
    _put(folder / MANIFEST_NAME, body + seal.encode())


def _edit(folder: Path, **changes: Any) -> None:
    value = json.loads((folder / MANIFEST_NAME).read_bytes())
    del value["sha256"]
    body = json.dumps({**value, **changes}, separators=(",", ":"))[:-1] + ",\n"
    _seal(folder, body.encode())


def _file(folder: Path, field: int, value: Any) -> None:
    files = json.loads((folder / MANIFEST_NAME).read_bytes())["files"]
    files[0][field] = value
    _edit(folder, files=files)


def _tensor(folder: Path, field: int, value: Any) -> None:
    tensors = json.loads((folder / MANIFEST_NAME).read_bytes())["tensors"]
    tensors[0][field] = value
    _edit(folder, tensors=tensors)


def _header(folder: Path, text: bytes) -> None:
    """The rank file with another header of the same length, and a manifest that vouches for it."""
    content = _rank(folder).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[:8] + text.ljust(length)[:length]
    _put(_rank(folder), header + content[8 + length :])
    _file(folder, 2, sha256(header).hexdigest()[:32])


def _length(folder: Path, length: int) -> None:
    content = _rank(folder).read_bytes()
    _put(_rank(folder), length.to_bytes(8, "little") + content[8:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.malice", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("scratch", type=Path)
    given = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        score = attack(Bed(given.run, given.scratch / "bed"), given.scratch / "canary")
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    finally:
        shutil.rmtree(given.scratch, ignore_errors=True)
    said = {"tried": score.tried, "noticed": score.noticed, "silent": score.silent}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
