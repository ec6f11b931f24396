"""A whole checkpoint, damaged in a thousand seeded ways: each one must be noticed. For drills.

    python -m trainer.verify.damages files RUN SCRATCH --count 1000 --seed 1
    python -m trainer.verify.damages pointers RUN SCRATCH

Prints one JSON object. What is loaded goes through the run's own loader and is compared with what
was stored, so that "noticed" means: nothing of the damaged step was ever used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone
from trainer.engine.base import FragmentSource
from trainer.errors import LonghaulError
from trainer.records.fragment import Fragment
from trainer.records.manifest import MANIFEST_NAME, Manifest
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage

_PAGE = 4096
_CUTS = 64


class ReadingEngine:
    """Loads everything a step holds and keeps its digest; trains nothing."""

    device = torch.device("cpu")

    def __init__(self, manifest: Manifest) -> None:
        self._tensors = manifest.tensors
        self.digest = ""

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return [(t.name, t.shape) for t in self._tensors]

    def load(self, source: FragmentSource, *, step: int) -> None:
        del step
        seen = hashlib.sha256()
        for tensor in self._tensors:
            for kind in tensor.kinds:
                out = torch.empty(tensor.elements)
                source.read(Fragment(tensor.name, kind, tensor.shape, 0, tensor.elements), out)
                seen.update(out.numpy().tobytes())
        self.digest = seen.hexdigest()


@dataclass
class Score:
    """`tried`, `noticed`: by kind of damage. `silent`: what nobody noticed, in words."""

    tried: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)


class Bed:
    """The two newest steps of a run, laid out again for each damage; files are hard links."""

    def __init__(self, run: Path, scratch: Path) -> None:
        self._source = RunFiles(run).checkpoints
        self._scratch = scratch
        self.folder = scratch / "checkpoints"
        folders = StepFolders(LocalStorage(), self._source)
        self.older, self.newest = folders.steps()[-2:]
        self._manifest = folders.manifest(self.newest)[0]
        self.digests = {step: self._digest(step) for step in (self.older, self.newest)}

    def step(self, step: int) -> Path:
        return StepFolders(LocalStorage(), self.folder).step(step)

    def lay(self) -> Path:
        """The newest step's folder, whole; the older one and the pointer beside it."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        for step in (self.older, self.newest):
            target = self.step(step)
            target.mkdir(parents=True)
            for path in (self._source / target.name).iterdir():
                os.link(path, target / path.name)
        shutil.copy(self._source / "latest.json", self.folder)
        return self.step(self.newest)

    def loaded(self) -> tuple[int, str]:
        """The step that a run would go on from, and the digest of what it would hold."""
        engine = ReadingEngine(self._manifest)
        store = CheckpointStore(self.folder, attempt=2)
        found = store.load_latest(Alone(), engine)  # type: ignore[arg-type]
        return (int(found["step"]) if found else 0), engine.digest

    def _digest(self, step: int) -> str:
        engine = ReadingEngine(self._manifest)
        CheckpointStore(self._source).load(Alone(), engine, step=step)  # type: ignore[arg-type]
        return engine.digest


def damage_files(bed: Bed, *, count: int, seed: int) -> Score:
    draw, score = random.Random(seed), Score()
    for number in range(count):
        folder = bed.lay()
        kind, what = _DAMAGES[number % len(_DAMAGES)](folder, bed, draw)
        score.tried[kind] += 1
        problem = _unnoticed(bed, kind)
        if problem:
            score.silent.append(f"{kind}, {what}: {problem}")
        else:
            score.noticed[kind] += 1
    return score


def _unnoticed(bed: Bed, kind: str) -> str:
    """How the damage got through; "" if it did not."""
    found = verify_step(LocalStorage(), bed.folder, bed.newest)
    if not found.problems:
        return "verify calls the step whole"
    step, digest = bed.loaded()
    # A file that the manifest does not know is reported, and nothing reads it.
    expected = bed.newest if kind == "extra" else bed.older
    if step != expected:
        return f"step {step} was loaded, not {expected}"
    if digest != bed.digests[step]:
        return f"step {step} was loaded with other values"
    condemned = list((bed.folder / "quarantine").glob("*/why.txt"))
    if kind != "extra" and not any(": " in path.read_text() for path in condemned):
        return "it is not in quarantine with the name of a file"
    return ""


_Damage = Callable[[Path, Bed, random.Random], tuple[str, str]]


def _own_copy(path: Path) -> bytearray:
    """Its bytes; the hard link is broken, so that only this folder is damaged."""
    content = bytearray(path.read_bytes())
    path.unlink()
    return content


def _flip(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    content = _own_copy(path)
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return "flip", f"bit {bit} of {path.name}"


def _cut(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    content = _own_copy(path)
    length = len(content) * draw.randrange(_CUTS) // _CUTS
    path.write_bytes(content[:length])
    return "cut", f"{path.name} at {length} of {len(content)} bytes"


def _zero(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    content = _own_copy(path)
    while True:
        at = draw.randrange(len(content)) // _PAGE * _PAGE
        if any(content[at : at + _PAGE]):
            break
    content[at : at + _PAGE] = bytes(len(content[at : at + _PAGE]))
    path.write_bytes(content)
    return "zeroed page", f"{path.name} at {at}"


def _append(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    content = _own_copy(path)
    more = draw.randrange(1, _PAGE)
    path.write_bytes(content + draw.randbytes(more))
    return "grown", f"{path.name} by {more} bytes"


def _missing(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    path.unlink()
    return "missing", path.name


def _extra(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    name = draw.choice(["rank-00099.safetensors", "notes.txt", "manifest.json.bak", ".hidden"])
    (folder / name).write_bytes(draw.randbytes(draw.randrange(1, 999)))
    return "extra", name


def _swap(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    a, b = draw.sample(sorted(folder.glob("rank-*")), 2)
    between = folder / "between"
    a.rename(between)
    b.rename(a)
    between.rename(b)
    return "swapped", f"{a.name} and {b.name}"


def _of_another_step(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    path = draw.choice(sorted(folder.iterdir()))
    path.unlink()
    os.link(bed.step(bed.older) / path.name, path)
    return "of another step", path.name


def _edited(folder: Path, bed: Bed, draw: random.Random) -> tuple[str, str]:
    """One digit of the manifest changed to another, as by a person with an editor."""
    path = folder / MANIFEST_NAME
    content = _own_copy(path)
    at = draw.choice([i for i, c in enumerate(content) if chr(c).isdigit()])
    old = content[at]
    content[at] = ord(draw.choice([d for d in "0123456789" if ord(d) != old]))
    path.write_bytes(content)
    return "edited manifest", f"byte {at}: {chr(old)} to {chr(content[at])}"


# In this order again and again: more than half are flips, cuts and zeroed pages.
_DAMAGES: tuple[_Damage, ...] = (
    *(_flip, _cut, _flip, _zero, _flip, _swap, _flip, _cut, _flip, _of_another_step),
    *(_flip, _zero, _flip, _edited, _flip, _missing, _flip, _cut, _append, _extra),
)


def pointer_contents(bed: Bed) -> dict[str, bytes | None]:
    """What may stand in the pointer. None: there is no such file."""
    good = (bed.folder / "latest.json").read_bytes()
    name = "latest.json"
    return {
        "as written": good,
        f"{name} missing": None,
        "empty": b"",
        "garbage": bytes(range(256)),
        "half of it": good[: len(good) // 2],
        "another step, whole": json.dumps({"step": bed.older, "sha256": "0" * 64}).encode(),
        "a step that is deleted": b'{"step": 1, "sha256": "00"}\n',
        "a step of the future": json.dumps({"step": bed.newest + 5, "sha256": "0" * 64}).encode(),
        "a step that is being written": json.dumps({"step": bed.newest + 1}).encode(),
        "another digest": json.dumps({"step": bed.newest, "sha256": "f" * 64}).encode(),
        "a path": b'{"step": "../../etc", "sha256": null}\n',
        "a list of a million": b"[" * 1_000_000,
    }


def point_anywhere(bed: Bed) -> Score:
    score = Score()
    bed.lay()
    for what, content in pointer_contents(bed).items():
        newest = bed.lay()
        pointer = bed.folder / "latest.json"
        pointer.unlink()
        if content is not None:
            pointer.write_bytes(content)
        half = bed.folder / f"{bed.step(bed.newest + 1).name}.incoming-0001"  # being written
        shutil.copytree(newest, half)
        (half / MANIFEST_NAME).unlink()
        score.tried["pointer"] += 1
        step, digest = bed.loaded()
        if (step, digest) == (bed.newest, bed.digests[bed.newest]):
            score.noticed["pointer"] += 1
        else:
            score.silent.append(f"pointer: {what}: step {step} was loaded")
    return score


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.damages", description=__doc__)
    parser.add_argument("what", choices=("files", "pointers"))
    parser.add_argument("run", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # every quarantine is a warning
    try:
        bed = Bed(given.run, given.scratch)
        if given.what == "files":
            score = damage_files(bed, count=given.count, seed=given.seed)
        else:
            score = point_anywhere(bed)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    said: dict[str, Any] = {
        "tried": dict(score.tried),
        "noticed": dict(score.noticed),
        "silent": score.silent,
    }
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
