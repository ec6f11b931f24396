"""How deep in the model a parameter lies, by its name, and rates that fall with that depth.

embeddings 0 | layers 1 .. L, the first one first | final norm, pooler, head L + 1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trainer.errors import ConfigError, Problem
from trainer.optim.groups import Group, Named

# Layers, as Hugging Face names them: model.layers.3., transformer.h.3., bert.encoder.layer.3., ...
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|block)\.(\d+)\.")


@dataclass(frozen=True)
class Layers:
    """What differs by depth. `decay`: of the rate, a layer down from the head. `unfreeze_every`:
    steps until the next layer down is trained as well (0: all are from step 1)."""

    decay: float = 1.0
    unfreeze_every: int = 0
    total_steps: int = 0

    @property
    def differ(self) -> bool:
        return self.decay != 1.0 or self.unfreeze_every > 0


def depths(names: Iterable[str]) -> dict[str, int]:
    """Of each name, in the model's order. What stands before the first layer is an embedding.

    Raises: ConfigError for a model without layers, or with two stacks of them.
    """
    known: dict[str, int] = {}
    last = 0
    after: list[str] = []
    for name in names:
        match = _LAYER.search(name)
        if match is None:
            if last:
                after.append(name)
            known[name] = 0
            continue
        number = int(match[1]) + 1
        if number < last:
            raise ConfigError([_two_stacks(name)])
        known[name] = last = number
    if not last:
        raise ConfigError([_refused("the model names no layers")])
    return known | dict.fromkeys(after, last + 1)


def by_depth(groups: Sequence[Group], named: Iterable[Named], layers: Layers) -> list[Group]:
    """Each group cut up by depth, with its rate and the step at which it begins to be trained.

    Source: Clark et al. 2020 (ELECTRA), appendix B, and its code: decay ** (L + 1 - depth); Howard
    and Ruder 2018 (ULMFiT), section 3.3: from the last layer down, embeddings at the end.
    Raises: ConfigError if the run is over before the embeddings are trained.
    """
    depth = depths(name for name, _ in named)
    top = max(depth.values())
    _check_length(layers, top - min(depth.values()))
    found = []
    for group in groups:
        for level in sorted({depth[name] for name, _ in group.parameters}):
            mine = tuple((n, p) for n, p in group.parameters if depth[n] == level)
            scale = group.lr_scale * layers.decay ** (top - level)
            opens = layers.unfreeze_every * (top - level) + 1
            found.append(
                replace(
                    group,
                    name=f"{group.name}.{level}",
                    parameters=mine,
                    lr_scale=scale,
                    open_at=opens,
                )
            )
    return found


def _check_length(layers: Layers, levels: int) -> None:
    last = layers.unfreeze_every * levels + 1
    if layers.unfreeze_every and last > layers.total_steps:
        where, most = "regularize.unfreeze_every", (layers.total_steps - 1) // levels
        what = f"the lowest layer is trained from step {last:,} on, and the run has"
        what += f" {layers.total_steps:,} steps"
        raise ConfigError([Problem(where, what, f"{where}={most}")])


def _two_stacks(name: str) -> Problem:
    return _refused(f"the model has two stacks of layers ({name} begins the second)")


def _refused(why: str) -> Problem:
    what = f"{why}, so that no parameter lies deeper than another"
    off = "regularize.layer_decay=1.0 regularize.unfreeze_every=0"
    return Problem("regularize.layer_decay", what, off)
