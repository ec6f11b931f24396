"""Build DeepSpeed's async_io operator, which `engine=zero3_offload_nvme` needs; once a machine.

    python -m trainer.commands.build_async_io [--device cpu|cuda]

Takes minutes: MAX_JOBS says how many compilers run at once. Into $LONGHAUL_OPS, or ~/.cache.
"""

from __future__ import annotations

import argparse
import sys
from typing import Literal

from trainer.commands.ending import ended
from trainer.errors import Exit


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="build_async_io", description=__doc__)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="what is trained on; default: ask torch"
    )
    given = parser.parse_args(argv)
    return ended(lambda: _build(given.device))


def _build(device: str | None) -> Exit:
    import torch

    from trainer.engine.async_io import build_async_io
    from trainer.engine.deepspeed import op_builders

    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on: Literal["cpu", "cuda"] = "cuda" if found == "cuda" else "cpu"
    print(f"async_io lies in {build_async_io(op_builders, on)}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
