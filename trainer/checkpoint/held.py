"""What this rank holds, out of the engine: as a plan, and as bytes. Local; no collectives here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from trainer.engine.base import Engine, HeldFragment
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment
from trainer.storage.local import Bytes

_BLOCK_ELEMENTS = 4 << 20  # 16 MiB: read while hot for the checksum, then written in one call


def plan_fragments(engine: Engine) -> tuple[Fragment, ...]:
    """What this rank will write, in the engine's order, empty fragments left out.

    Raises: CheckpointError if the engine's fragments contradict its layout or each other.
    """
    plan = tuple(h.fragment for h in engine.fragments() if h.fragment.length)
    check_plan(plan, engine)
    return plan


def check_plan(plan: Iterable[Fragment], engine: Engine) -> None:
    """Raises: CheckpointError if fragments contradict the engine's layout or each other."""
    shapes = dict(engine.layout())
    reached: dict[tuple[str, str], int] = {}
    for f in sorted(plan):
        if shapes.get(f.name) != f.shape:
            raise CheckpointError(f"a fragment of {f.name!r} {f.shape} is not in the layout")
        if not reached.get((f.name, f.kind), 0) <= f.start < f.stop:
            raise CheckpointError(f"fragments of {f.kind} of {f.name!r} overlap or run backwards")
        reached[f.name, f.kind] = f.stop
        if f.stop > int(np.prod(f.shape, dtype=np.int64)):
            raise CheckpointError(f"a fragment of {f.name!r} ends at {f.stop}, beyond {f.shape}")


def flat_values(held: HeldFragment) -> torch.Tensor:
    """The live values, 1-D. Raises: CheckpointError unless they are the fragment's, in fp32."""
    values = held.values.detach().reshape(-1)
    if values.dtype != torch.float32 or values.numel() != held.fragment.length:
        raise CheckpointError(
            f"{held.fragment.kind} of {held.fragment.name!r}: {values.numel()} values of "
            f"{values.dtype} for {held.fragment.length} elements of float32"
        )
    return values


def live_blocks(engine: Engine, plan: Sequence[Fragment]) -> Iterator[Bytes]:
    """The engine's values as bytes, 16 MiB at most at a time, without a copy where they can be.

    Raises: CheckpointError if the engine now holds something else than was planned.
    """
    expected = iter(plan)
    for held in engine.fragments():
        if held.fragment.length == 0:
            continue
        if next(expected, None) != held.fragment:
            raise CheckpointError(f"the engine's fragments changed at {held.fragment.name!r}")
        values = flat_values(held)
        for start in range(0, len(values), _BLOCK_ELEMENTS):
            part = values[start : start + _BLOCK_ELEMENTS]
            yield part.cpu().contiguous().numpy().view(np.uint8)
    if next(expected, None) is not None:
        raise CheckpointError("the engine's fragments ended early")
