"""What all ranks together will write: agreed once, and again only when it changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.checkpoint.agreement import Disagreed, agree, nowhere
from trainer.checkpoint.layout import Span, is_even, positions, spans
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.records.fragment import Fragment
from trainer.records.manifest import LogicalTensor, Rule


@dataclass(frozen=True)
class Contents:
    """`mine` and `spans` are this rank's; the rest is equal on all ranks."""

    mine: tuple[Fragment, ...]
    spans: tuple[Span, ...]
    tensors: tuple[LogicalTensor, ...]
    rule: Rule


def agree_on_contents(
    world: World,
    engine: Engine,
    *,
    known: Contents | None,
    held: Callable[[], tuple[Fragment, ...]],
) -> Contents:
    """`held` says what this rank holds; it may fail. Collective.

    Raises: Disagreed if the ranks together do not hold every element once.
    """
    plan: tuple[Fragment, ...] = ()
    error: Exception | None = None
    try:
        plan = held()
    except Exception as e:  # raised on every rank below
        error = e

    def is_new() -> bool:
        return error is not None or known is None or known.mine != plan

    if nowhere(world, is_new) and known is not None:
        return known

    def mine() -> None:
        if error is not None:
            raise error

    agree(world, mine, len)
    return _agree_anew(world, engine, plan)


def _agree_anew(world: World, engine: Engine, mine: tuple[Fragment, ...]) -> Contents:
    def look() -> dict[str, Any]:
        return {
            "kinds": sorted({f.kind for f in mine}),
            "even": is_even(mine, world.place.rank, world.place.world_size),
        }

    def decide(seen: Sequence[Any]) -> dict[str, Any]:
        return {
            "kinds": sorted({kind for s in seen for kind in s["kinds"]}),
            "even": all(s["even"] for s in seen),
        }

    agreed = agree(world, look, decide)
    tensors = _tensors(world, engine, mine, agreed["kinds"])
    if agreed["even"]:
        return Contents(mine, (), tensors, "even")
    begins = positions(t.elements for t in tensors)
    where = {t.name: at for t, at in zip(tensors, begins, strict=False)}
    return Contents(mine, spans(mine, where), tensors, "spans")


def _tensors(
    world: World, engine: Engine, mine: Sequence[Fragment], kinds: Sequence[str]
) -> tuple[LogicalTensor, ...]:
    """The logical tensors with the kinds that exist of each, from one sum over ranks."""
    held: Counter[tuple[str, str]] = Counter()
    for f in mine:
        held[f.name, f.kind] += f.length
    layout = [(name, tuple(shape)) for name, shape in engine.layout()]
    # Counts stay exact in float64 up to 2^53 elements.
    counts = iter(world.sum([float(held[name, kind]) for name, _ in layout for kind in kinds]))
    tensors = []
    for name, shape in layout:
        found = {kind: int(next(counts)) for kind in kinds}
        tensor = LogicalTensor(name, shape, tuple(k for k in kinds if found[k]))
        wrong = [k for k in tensor.kinds if found[k] != tensor.elements]
        if wrong or (tensor.elements and not tensor.kinds):
            said = f"{found[wrong[0]]} elements of {wrong[0]}" if wrong else "nothing"
            # Every rank sees the same sums, so every rank raises.
            raise Disagreed(
                "CheckpointError",
                f"the ranks together hold {said} of {name!r}, which has {tensor.elements}",
            )
        tensors.append(tensor)
    return tuple(tensors)
