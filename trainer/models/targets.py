"""Which matrices of a model an adapter stands beside, and which modules are trained whole."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from trainer.capacity.adaptation import (
    is_in_layer,
    meant,
    named,
    nothing_matched,
    within_layer,
)
from trainer.config.sections.adapters import BesideMatrices
from trainer.errors import ConfigError, Problem
from trainer.models.encoder import EncoderModel
from trainer.models.wrappers import AnyModel


def targets(model: AnyModel, adapter: BesideMatrices) -> list[str]:
    """Whole names of the matrices that the patterns mean.

    Raises: ConfigError if one matches nothing, naming what there is.
    """
    matrices = [n for n, m in model.named_modules() if _is_matrix(m) and is_in_layer(n)]
    found: set[str] = set()
    for pattern in adapter.targets:
        matched = [n for n in matrices if meant(n, pattern, adapter.kind)]
        if not matched:
            short = sorted({within_layer(n) for n in matrices})
            refuse_pattern("model.adapter.targets", pattern, short)
        found |= set(matched)
    return sorted(found)


def trained_whole(model: AnyModel, adapter: BesideMatrices) -> list[nn.Parameter]:
    """A head on a trunk in any case, nobody has trained it before; and what is asked for.

    Raises: ConfigError if a name matches no module, naming what there is.
    """
    found = [model.get_parameter(name) for name in outside_the_trunk(model)]
    every = [(n, m) for n, m in model.named_modules() if n]
    modules = [(n, m) for n, m in every if next(m.parameters(), None) is not None]
    for pattern in adapter.modules_to_save:
        matched = [m for n, m in modules if named(n, pattern)]
        if not matched:
            outside = sorted({n for n, _ in modules if not is_in_layer(f"{n}.")})
            refuse_pattern("model.adapter.modules_to_save", pattern, outside)
        found += [p for m in matched for p in m.parameters()]
    return found


def outside_the_trunk(model: AnyModel) -> list[str]:
    """Parameters of a head on a trunk, a pooler's with them; a tied embedding is the trunk's. None
    of a model whose head is part of what was pretrained.
    """
    # A reward's head is called score.
    if not isinstance(model, EncoderModel) and not hasattr(model, "score"):
        return []
    trunk = f"{model.hf.base_model_prefix}."
    return [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(trunk) or name.startswith(f"{trunk}pooler.")
    ]


def refuse_pattern(where: str, pattern: str, names: list[str]) -> NoReturn:
    raise ConfigError([Problem(where, nothing_matched(pattern, names), "")])


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
