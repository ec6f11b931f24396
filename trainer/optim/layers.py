"""How deep in the model a parameter lies, by its name, and rates that fall with that depth.

embeddings 0 | layers 1 .. L, the first one first | final norm, pooler, head L + 1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trainer.errors import ConfigError, Problem
from trainer.optim.groups import Group, Named

# Layers, as Hugging Face names them: model.layers.3., transformer.h.3., bert.encoder.layer.3., ...
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|block)\.(\d+)\.")


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
        what = "the model names no layers, so that no parameter lies deeper than another"
        raise ConfigError([Problem("regularize.layer_decay", what, "regularize.layer_decay=1.0")])
    return known | dict.fromkeys(after, last + 1)


def by_depth(groups: Sequence[Group], named: Iterable[Named], *, decay: float) -> list[Group]:
    """Each group cut up by depth; the rate is `decay` times less for each step down from the head.

    Source: Clark et al. 2020 (ELECTRA), appendix B, and its code: decay ** (L + 1 - depth).
    """
    depth = depths(name for name, _ in named)
    top = max(depth.values())
    found = []
    for group in groups:
        for level in sorted({depth[name] for name, _ in group.parameters}):
            mine = tuple((n, p) for n, p in group.parameters if depth[n] == level)
            scale = group.lr_scale * decay ** (top - level)
            name = f"{group.name}.{level}"
            found.append(replace(group, name=name, parameters=mine, lr_scale=scale))
    return found


def _two_stacks(name: str) -> Problem:
    what = f"the model has two stacks of layers ({name} begins the second), and no one depth"
    return Problem("regularize.layer_decay", what, "regularize.layer_decay=1.0")
