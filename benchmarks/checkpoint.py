"""Checkpoints against what people use: time to DURABLE, time to load, in one interleaved run.

    python -m benchmarks.checkpoint --folder /a/folder/on/the/disk/under/test

State: about 100 M parameters with Adam, fp32 master and two moments, 1.24 GB, one process. Every
writer's files are fsynced, and their folder, before its clock stops: a writer that returns before
is not done. Every reader ends with all values in live tensors. Ours also checks every byte.
Ratios are taken within a round, so that a slow moment of the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.engine.base import FragmentSource, HeldFragment
from trainer.records.fragment import Fragment

KINDS = ("master", "exp_avg", "exp_avg_sq")


def shapes(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """A Llama-like model of width 768; 12 layers have 103 M parameters."""
    block = {
        "q": (768, 768), "k": (384, 768), "v": (384, 768), "o": (768, 768), "gate": (2048, 768),
        "up": (2048, 768), "down": (768, 2048), "norm1": (768,), "norm2": (768,),
    }  # fmt: skip
    inner = [(f"layers.{i}.{n}", s) for i in range(layers) for n, s in block.items()]
    return [("embed", (16384, 768)), *inner, ("head", (16384, 768))]


class HeldState:
    """An engine of one process that holds everything."""

    device = torch.device("cpu")

    def __init__(self, layers: int) -> None:
        self._layout = shapes(layers)
        self.flat = {
            f"{kind}:{name}": torch.randn(prod(shape)).reshape(shape)
            for name, shape in self._layout
            for kind in KINDS
        }

    def fragments(self) -> Iterator[HeldFragment]:
        for name, shape in self._layout:
            for kind in KINDS:
                values = self.flat[f"{kind}:{name}"].reshape(-1)
                yield HeldFragment(Fragment(name, kind, shape, 0, values.numel()), values)

    def load(self, source: FragmentSource, *, step: int) -> None:
        for held in self.fragments():
            source.read(held.fragment, held.values)

    def layout(self) -> list[tuple[str, tuple[int, ...]]]:
        return self._layout

    def copy_from(self, other: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.flat.items():
            tensor.copy_(other[name])


@dataclass(frozen=True)
class Way:
    save: Callable[[Path, HeldState], object]
    load: Callable[[Path, HeldState], object] | None


def _ours_save(folder: Path, state: HeldState) -> None:
    store = CheckpointStore(folder / "c")
    assert store.save(Alone(), state, step=1, training={}).succeeded  # type: ignore[arg-type]


def _ours_load(folder: Path, state: HeldState) -> None:
    assert CheckpointStore(folder / "c").load_latest(Alone(), state) == {}  # type: ignore[arg-type]


def _raw_save(folder: Path, state: HeldState) -> None:
    """The floor: the same bytes in the same blocks, nothing else."""
    with (folder / "raw").open("wb", buffering=0) as file:
        for tensor in state.flat.values():
            view = tensor.reshape(-1).numpy().view(np.uint8)
            for start in range(0, view.size, 16 << 20):
                file.write(view[start : start + (16 << 20)].data)


def _raw_load(folder: Path, state: HeldState) -> None:
    with (folder / "raw").open("rb", buffering=0) as file:
        for tensor in state.flat.values():
            file.readinto(tensor.reshape(-1).numpy().view(np.uint8).data)


WAYS: dict[str, Way] = {
    "longhaul": Way(_ours_save, _ours_load),
    "raw write": Way(_raw_save, _raw_load),
    "torch.save": Way(
        lambda f, s: torch.save(s.flat, f / "x.pt"),
        lambda f, s: s.copy_from(torch.load(f / "x.pt", mmap=True)),
    ),
    "safetensors": Way(
        lambda f, s: save_file(s.flat, f / "x.safetensors"),
        lambda f, s: s.copy_from(load_file(f / "x.safetensors")),
    ),
    "dcp.save": Way(
        lambda f, s: dcp.save(s.flat, checkpoint_id=f / "d", no_dist=True),
        lambda f, s: dcp.load(s.flat, checkpoint_id=f / "d", no_dist=True),
    ),
}


def fsync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def one_round(root: Path, state: HeldState, size: float) -> dict[str, dict[str, float]]:
    """GB/s of each way."""
    rates: dict[str, dict[str, float]] = {}
    for name, way in WAYS.items():
        folder = root / "under-test"
        folder.mkdir()

        def durable(way: Way = way, folder: Path = folder) -> None:
            way.save(folder, state)
            fsync_all(folder)

        rates[name] = {"save": size / timed(durable)}
        rates[name]["load warm"] = size / timed(lambda w=way, f=folder: w.load(f, state))
        forget(folder)
        rates[name]["load cold"] = size / timed(lambda w=way, f=folder: w.load(f, state))
        shutil.rmtree(folder)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk under test")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # dcp speaks of one process every time
    state = HeldState(given.layers)
    size = sum(t.numel() for t in state.flat.values()) * 4 / 1e9
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-", dir=given.folder) as scratch:
        one_round(Path(scratch), state, size)  # the first of each is slower: page cache, allocator
        rounds = [one_round(Path(scratch), state, size) for _ in range(given.rounds)]
    if given.json:
        print(json.dumps({"gigabytes": size, "rounds": rounds}))
        return
    facts = f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    print(f"{time.strftime('%Y-%m-%d')}  {platform.machine()}, {facts}")
    print(f"{size:.2f} GB in {given.folder.resolve()}, median of {given.rounds} rounds, GB/s")
    print(
        f"{'':<13}{'save, durable':>14}{'load warm':>11}{'load cold':>11}{'ours / it (save)':>19}"
    )
    for name in WAYS:
        mid = {w: statistics.median(r[name][w] for r in rounds) for w in rounds[0][name]}
        ratios = sorted(r["longhaul"]["save"] / r[name]["save"] for r in rounds)
        spread = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(
            f"{name:<13}{mid['save']:>14.2f}{mid['load warm']:>11.2f}{mid['load cold']:>11.2f}"
            f"{spread:>19}"
        )


if __name__ == "__main__":
    main()
