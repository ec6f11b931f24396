"""Optimizers over named parameters. The learning rate is set by the engine at every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from trainer.config.sections.training import AdamW, Muon, Sgd
from trainer.optim.groups import Group, decay_groups


def make_optimizer(
    section: AdamW | Sgd | Muon, named: Iterable[tuple[str, torch.nn.Parameter]]
) -> torch.optim.Optimizer:
    """An optimizer whose groups carry `name`, `names` and `lr_scale` beside torch's own keys."""
    groups = decay_groups(named, weight_decay=section.weight_decay)
    if isinstance(section, AdamW):
        return torch.optim.AdamW(
            _as_torch(groups),
            lr=section.learning_rate,
            betas=(section.beta1, section.beta2),
            eps=section.eps,
            fused=True,  # 6x the default on CPU: notes in docs/log.md
        )
    if isinstance(section, Sgd):
        return torch.optim.SGD(
            _as_torch(groups), lr=section.learning_rate, momentum=section.momentum
        )
    raise NotImplementedError


def _as_torch(groups: Iterable[Group]) -> list[dict[str, Any]]:
    return [
        {
            "params": [p for _, p in g.parameters],
            "names": [n for n, _ in g.parameters],
            "name": g.name,
            "weight_decay": g.weight_decay,
            "lr_scale": g.lr_scale,
        }
        for g in groups
    ]
