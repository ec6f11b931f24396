"""What must be true of a process before DeepSpeed is used in it.

DeepSpeed keeps its state in module globals, so this is done to the process, not to an engine.
Doing it again changes nothing. Quirks are those of DeepSpeed 0.19.8 with torch 2.13.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainer.dist.world import Place


def prepare_process(place: Place, device: torch.device) -> None:
    """Set the environment DeepSpeed reads, and give a world of one process its group."""
    # Decides which accelerator DeepSpeed sees; read when it is first imported.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # An op build that is killed leaves a lock here, and every later one waits for it for ever.
    folder = f"{tempfile.gettempdir()}/longhaul-ops-{os.getuid()}-{os.getpid()}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", folder)
    # zero.Init reads LOCAL_RANK, the others come with it.
    os.environ.setdefault("RANK", str(place.rank))
    os.environ.setdefault("WORLD_SIZE", str(place.world_size))
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    if not dist.is_initialized():
        # DeepSpeed cannot do without a group; in one process nobody else needs to find it.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = torch._C._distributed_c10d.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def quiet(deepspeed: Any) -> None:
    """No compiling behind our back, no log lines that are not warnings."""
    # init_distributed would compile this C++ op for CPU ranks, under the lock described above.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logging.logger.setLevel(logging.ERROR)


@contextmanager
def new_groups_time_out(seconds: float) -> Iterator[None]:
    """Give process groups made inside the time-out that DeepSpeed forgets to pass on.

    Without it a rank that stands still holds the others for gloo's or NCCL's own 10 to 30 minutes.
    """
    groups: dict[Any, Any] = dist.distributed_c10d._world.pg_map
    before = set(groups)
    yield
    for group in set(groups) - before:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def skip_compiler(deepspeed: Any) -> None:
    """Import DeepSpeed's Muon without torch.compile, for runs that do not use it.

    Every ZeRO optimizer imports Muon, and its decorators import torch._inductor: 1.2 of the 6.7
    CPU seconds that a rank takes to import everything.
    """
    compiler = deepspeed.runtime.compiler
    compile_ = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module(f"{deepspeed.__name__}.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_
