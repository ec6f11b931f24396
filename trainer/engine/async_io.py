"""DeepSpeed's async_io operator: built once into a folder of its own, then only loaded.

Quirks are those of DeepSpeed 0.19.8; records/built_ops.py says why it never builds in a rank.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

from trainer.errors import Refused
from trainer.records.built_ops import PARTS, is_installed_with_deepspeed, needs_async_io, ops_folder


def load_async_io(builders: Any, device: Literal["cpu", "cuda"]) -> None:
    """Put what was built where DeepSpeed looks before it compiles.

    `builders`: deepspeed.ops.op_builder. Raises: ConfigError if it is not built.
    """
    needs_async_io(device)
    if is_installed_with_deepspeed():
        return
    loaded = builders.OpBuilder._loaded_ops  # one dictionary for all builders
    for part in PARTS:
        if part not in loaded:
            path = ops_folder(device) / f"{part}.so"
            # async_io finds pin_memory's symbols among the process's global ones.
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            loaded[part] = _module(part, path)


def build_async_io(op_builders: Callable[[], Any], device: Literal["cpu", "cuda"]) -> Path:
    """The folder it lies in, built there if it was not. Minutes; a killed build is never believed.

    `op_builders`: gives deepspeed.ops.op_builder, imported after the environment is set here.
    Raises: Refused if libaio's header or a compiler is missing.
    """
    folder = ops_folder(device)
    if all((folder / f"{part}.so").exists() for part in PARTS):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as building:
        os.environ["TORCH_EXTENSIONS_DIR"] = building
        os.environ["DS_ACCELERATOR"] = device
        # torch runs `ninja`, which may be installed beside this Python only.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        _compile(op_builders().AsyncIOBuilder())
        made = Path(building) / "made"
        made.mkdir()
        for part in PARTS:
            shutil.copy2(Path(building) / part / f"{part}.so", made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # nobody else was faster
                raise
    return folder


def _compile(builder: Any) -> None:
    if not builder.is_compatible(verbose=False):
        raise Refused(
            "async_io cannot be built: libaio's header or a C++ compiler is missing "
            "(Debian, Ubuntu: apt-get install libaio-dev g++; Fedora: dnf install libaio-devel)"
        )
    try:
        builder.load(verbose=True)
    except (OSError, RuntimeError) as e:
        raise Refused(f"async_io could not be built: {str(e).strip().splitlines()[0]}") from e


def _module(name: str, path: Path) -> Any:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
