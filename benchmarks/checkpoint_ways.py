"""The ways to save and load that benchmarks/checkpoint.py compares; each holds one rank's state."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from trainer.checkpoint.orders import Discard
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import World
from trainer.engine.base import FragmentSource, HeldFragment, read_all
from trainer.records.fragment import Fragment

KINDS = ("master", "exp_avg", "exp_avg_sq")
Shapes = list[tuple[str, tuple[int, ...]]]


def shapes(layers: int) -> Shapes:
    """A Llama-like model of width 768; 12 layers have 103 M parameters."""
    block = {
        "q": (768, 768), "k": (384, 768), "v": (384, 768), "o": (768, 768), "gate": (2048, 768),
        "up": (2048, 768), "down": (768, 2048), "norm1": (768,), "norm2": (768,),
    }  # fmt: skip
    inner = [(f"layers.{i}.{n}", s) for i in range(layers) for n, s in block.items()]
    return [("embed", (16384, 768)), *inner, ("head", (16384, 768))]


class Shard:
    """An engine's share of everything. `flat`: as ZeRO 1 and 2 cut, else as ZeRO 3 does."""

    def __init__(self, world: World, layers: int, *, flat: bool) -> None:
        self.device = torch.device("cpu")
        self._layout = shapes(layers)
        rank, size = world.place.rank, world.place.world_size
        self.held: list[HeldFragment] = []
        total, at = sum(prod(shape) for _, shape in self._layout), 0
        for name, shape in self._layout:
            n = prod(shape)
            share = -(-(total if flat else n) // size)
            first = min(max(rank * share - (at if flat else 0), 0), n)
            last = min(max((rank + 1) * share - (at if flat else 0), 0), n)
            at += n
            for kind in KINDS if first < last else ():
                values = torch.randn(last - first)
                self.held.append(HeldFragment(Fragment(name, kind, shape, first, last), values))

    @property
    def num_bytes(self) -> int:
        return sum(4 * h.fragment.length for h in self.held)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"{h.fragment.kind}:{h.fragment.name}": h.values for h in self.held}

    def fragments(self) -> Iterator[HeldFragment]:
        yield from self.held

    def layout(self) -> Shapes:
        return self._layout

    def load(self, source: FragmentSource, *, step: int) -> None:
        read_all(source, [(held.fragment, held.values) for held in self.held])


@dataclass(frozen=True)
class Saved:
    """Seconds: how long the caller stood still; until its own process wrote no more."""

    stall_s: float
    done_s: float
    is_durable: bool = False


class Way(Protocol):
    def save(self, folder: Path) -> Saved: ...
    def load(self, folder: Path) -> None: ...


class Ours:
    """`background`: ranks ask each other as steps do, every 10 ms. `into`: the share to load.

    The clock of a save in the background is the writers' own: it ends when the step is published.

    Buffers and writers are there before the clock starts, as they are before a run's first step.
    """

    def __init__(
        self, world: World, shard: Shard, *, background: bool, into: Shard | None = None
    ) -> None:
        self._world, self._shard, self._background = world, shard, background
        self._into = into or shard
        self.prepare_s: list[float] = []

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        store = CheckpointStore(folder / "c", asynchronous=self._background)
        store.prepare(self._world, self._shard)  # type: ignore[arg-type]
        self.prepare_s.append(time.perf_counter() - started)
        if self._background:
            _await_writer(store)
        self._world.sum([0.0])
        begun = time.perf_counter()
        reports = store.begin(self._world, self._shard, step=1, training={})  # type: ignore[arg-type]
        stall_s = time.perf_counter() - begun
        while not reports:
            time.sleep(0.01)
            if self._world.sum([float(store.written())])[0] == self._world.place.world_size:
                reports = store.finish(self._world)
        (report,) = reports
        assert report.succeeded, report.problem
        store.close()
        return Saved(max(stall_s, report.stall_s), report.write_s, is_durable=True)

    def load(self, folder: Path) -> None:
        store = CheckpointStore(folder / "c")
        assert store.load_latest(self._world, self._into) == {}  # type: ignore[arg-type]


def _await_writer(store: CheckpointStore) -> None:
    """Until it answers: on a busy machine it takes longer to start than a fixed pause."""
    saves = store._background
    assert saves is not None
    saves._link.give(Discard(step=0, attempt=1))
    saves._link.wait(60.0)
    saves._link.result()


class Raw:
    """The floor: the same bytes, each rank one preallocated file, in blocks of 16 MiB."""

    def __init__(self, world: World, shard: Shard) -> None:
        self._name, self._shard = f"raw-{world.place.rank}", shard

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        descriptor = os.open(folder / self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(descriptor, 0, self._shard.num_bytes)
        at = 0
        for tensor in self._shard.tensors.values():
            view = tensor.numpy().view(np.uint8)
            for start in range(0, view.size, 16 << 20):
                at += os.pwrite(descriptor, view[start : start + (16 << 20)].data, at)
        os.fsync(descriptor)
        os.close(descriptor)
        passed = time.perf_counter() - started
        return Saved(passed, passed)

    def load(self, folder: Path) -> None:
        with (folder / self._name).open("rb", buffering=0) as file:
            for tensor in self._shard.tensors.values():
                view = tensor.numpy().view(np.uint8)
                for start in range(0, view.size, 16 << 20):
                    file.readinto(view[start : start + (16 << 20)].data)


class Copy:
    """No save at all: what copying the state to memory that was touched before costs."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._room = {name: torch.zeros_like(t) for name, t in shard.tensors.items()}

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        for name, tensor in self._shard.tensors.items():
            self._room[name].copy_(tensor)
        passed = time.perf_counter() - started
        return Saved(passed, passed)

    def load(self, folder: Path) -> None:
        raise AssertionError(f"a copy writes nothing, so {folder} holds nothing to load")


class Safetensors:
    def __init__(self, world: World, shard: Shard) -> None:
        self._name, self._shard = f"s-{world.place.rank}.safetensors", shard

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        save_file(self._shard.tensors, folder / self._name)
        passed = time.perf_counter() - started
        return Saved(passed, passed)

    def load(self, folder: Path) -> None:
        found = load_file(folder / self._name)
        for name, tensor in self._shard.tensors.items():
            tensor.copy_(found[name])


class Dcp:
    """Every rank's shard under keys of its own. `kind`: None waits; else who writes meanwhile.

    Its staging is as good as torch offers on a CPU: buffers that are kept (shared ones for a
    process), filled before `async_save` returns.
    """

    def __init__(self, world: World, shard: Shard, kind: AsyncCheckpointerType | None) -> None:
        self._rank, self._shard, self._kind = world.place.rank, shard, kind
        self._stager: DefaultStager | None = None
        self._group: Any = None
        if kind is not None:
            options = StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=kind is AsyncCheckpointerType.PROCESS,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
            self._stager = DefaultStager(options)
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=300))

    @property
    def _state(self) -> dict[str, torch.Tensor]:
        return {f"{self._rank}:{name}": t for name, t in self._shard.tensors.items()}

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        if self._kind is None:
            dcp.save(self._state, checkpoint_id=folder / "d")
            passed = time.perf_counter() - started
            return Saved(passed, passed)
        future: Any = dcp.async_save(
            self._state,
            checkpoint_id=folder / "d",
            process_group=self._group,
            async_checkpointer_type=self._kind,
            async_stager=self._stager,
        )
        stall_s = time.perf_counter() - started
        getattr(future, "upload_completion", future).result()
        return Saved(stall_s, time.perf_counter() - started)

    def load(self, folder: Path) -> None:
        dcp.load(self._state, checkpoint_id=folder / "d")


class DeepSpeed:
    """ZeRO 1 with bf16 weights; `save_checkpoint` also writes those, a sixth more."""

    def __init__(self, world: World, layers: int) -> None:
        import deepspeed

        from trainer.engine.bootstrap import prepare_process, quiet

        prepare_process(world.place, torch.device("cpu"))
        quiet(deepspeed)
        model = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.zeros(s)) for _, s in shapes(layers)]
        )
        groups = list(model.parameters())
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=groups,
            optimizer=torch.optim.AdamW(groups, lr=1e-3),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "bf16": {"enabled": True},
                "zero_optimization": {"stage": 1},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        loss: Any = sum(p.float().sum() for p in model)
        engine.backward(loss)
        engine.step()
        self._engine = engine

    def save(self, folder: Path) -> Saved:
        started = time.perf_counter()
        self._engine.save_checkpoint(str(folder / "ds"), tag="a")
        passed = time.perf_counter() - started
        return Saved(passed, passed)

    def load(self, folder: Path) -> None:
        self._engine.load_checkpoint(str(folder / "ds"), tag="a")


FLOORS = ("raw write", "copy")


def make_ways(
    world: World, layers: int, *, only: Sequence[str] = ()
) -> tuple[dict[str, Way], Shard]:
    """By name; `only` these and the floors."""
    warnings.simplefilter("ignore")
    shard, even = Shard(world, layers, flat=True), Shard(world, layers, flat=False)
    makers: dict[str, Callable[[], Way]] = {
        "longhaul background": lambda: Ours(world, shard, background=True),
        "longhaul waiting": lambda: Ours(world, shard, background=False, into=even),
        "raw write": lambda: Raw(world, shard),
        "copy": lambda: Copy(shard),
        "dcp.save": lambda: Dcp(world, shard, None),
        "dcp.async_save thread": lambda: Dcp(world, shard, AsyncCheckpointerType.THREAD),
        "dcp.async_save process": lambda: Dcp(world, shard, AsyncCheckpointerType.PROCESS),
        "safetensors": lambda: Safetensors(world, shard),
        "deepspeed": lambda: DeepSpeed(world, layers),
    }
    chosen = [name for name in makers if not only or name in (*only, *FLOORS)]
    return {name: makers[name]() for name in chosen}, shard
