"""Steps that are not to be applied, run inside ranks: what they must leave untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.contract.engine_cases import (
    Case,
    Drawn,
    held_by,
    loss_sum,
    make_engine,
    rows,
    train_step,
)
from trainer.dist.world import World
from trainer.engine.base import Engine


@dataclass(frozen=True)
class Refused:
    """What one case saw. Two good steps with something refused between them."""

    asked: list[float]  # norms that `apply_if` was asked about
    stats: list[tuple[bool, float]]  # (applied, norm) of the refused steps
    unharmed: bool  # the state after each of them is that before it, bit for bit
    as_if_never: bool  # the state at the end is that of a run without the refused steps


def refuse_all(world: World, wanted: Sequence[Case]) -> list[Refused]:
    """For each case: a good step, four that are refused or cannot be applied, a good step."""
    return [_refuse(world, case) for case in wanted]


def _refuse(world: World, case: Case) -> Refused:
    engine = make_engine(world, case)
    engine.load(Drawn(), step=0)
    train_step(world, engine, case, 1)
    asked: list[float] = []

    def no(norm: float) -> bool:
        asked.append(norm)
        return False

    stats, unharmed = [], True
    for poison in ("", "nan", "inf", "one element"):
        before = held_by(engine)
        _gradients(world, engine, case, poison)
        done = engine.step(lr=0.1, apply_if=no)
        stats.append((done.applied, done.grad_norm))
        after = held_by(engine)
        unharmed &= all(torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))
    train_step(world, engine, case, 2)
    ended = held_by(engine)
    engine.close()
    plain = make_engine(world, case)
    plain.load(Drawn(), step=0)
    for step in (1, 2):
        train_step(world, plain, case, step)
    same = [torch.equal(a, b) for (_, a), (_, b) in zip(ended, held_by(plain), strict=True)]
    plain.close()
    return Refused(asked, stats, unharmed, all(same))


def _gradients(world: World, engine: Engine, case: Case, poison: str) -> None:
    """A step's backwards; the last rank's last one is poisoned, the others are good."""
    inputs, labels = rows(7)
    mine = slice(world.place.rank, None, world.place.world_size)
    here = world.place.rank == world.place.world_size - 1
    for micro_step in range(case.micro_steps):
        last = micro_step == case.micro_steps - 1
        loss = loss_sum(engine.model(inputs[mine]), labels[mine]) / 100
        if here and last and poison in ("nan", "inf"):
            loss = loss * float(poison)
        if here and last and poison == "one element":
            _poison_one_element(engine)
        engine.accumulate(loss, last=last)


def _poison_one_element(engine: Engine) -> None:
    """Of the embedding's gradient, as the backward makes it: nothing else is touched."""
    model = getattr(engine.model, "module", engine.model)

    def damage(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        damaged = gradient.clone()
        damaged.view(-1)[3] = torch.nan
        return damaged

    handle = model.embed.weight.register_hook(damage)
