"""Where DeepSpeed's async_io operator lies once it is built: a look at files, nothing is imported.

    $LONGHAUL_OPS or ~/.cache/longhaul/ops
        deepspeed-0.19.8-torch-2.13.0-cp311-cpu/    made whole by one rename, never changed
            pin_memory.so
            async_io.so                             what reads and writes swap files

DeepSpeed would compile it in every rank that swaps, for minutes, under a lock that a killed rank
leaves behind for ever. So it is built once, by a command, and ranks only load it.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from trainer.errors import ConfigError, Problem

PARTS = ("pin_memory", "async_io")  # in the order in which they must be loaded
BUILD = "python -m trainer.commands.build_async_io"


def ops_folder(device: Literal["cpu", "cuda"]) -> Path:
    """For this Python, this torch and this DeepSpeed; it need not be there."""
    root = os.environ.get("LONGHAUL_OPS") or Path.home() / ".cache" / "longhaul" / "ops"
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    made_for = f"deepspeed-{version('deepspeed')}-torch-{version('torch')}-{python}-{device}"
    return Path(root) / made_for


def is_installed_with_deepspeed() -> bool:
    """DeepSpeed was installed with DS_BUILD_AIO=1."""
    spec = find_spec("deepspeed")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return any(True for place in places for _ in Path(place, "ops", "aio").glob("async_io_op*.so"))


def is_built(device: Literal["cpu", "cuda"]) -> bool:
    folder = ops_folder(device)
    return all((folder / f"{part}.so").exists() for part in PARTS) or is_installed_with_deepspeed()


def needs_async_io(device: Literal["cpu", "cuda"]) -> None:
    """Raises: ConfigError if state cannot be swapped to a disk on this machine."""
    if not is_built(device):
        what = (
            "swapping to a disk needs DeepSpeed's async_io operator, which is not built here; "
            f"build it once, in a few minutes: {BUILD} --device {device}"
        )
        raise ConfigError([Problem("engine", what, "engine=zero3_offload_cpu")])
