"""Which matrices of a model an adapter stands beside, and which modules are trained whole."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import NoReturn

from torch import nn

from trainer.config.sections.adapters import BesideMatrices
from trainer.errors import ConfigError, Problem
from trainer.models.encoder import EncoderModel
from trainer.models.wrappers import AnyModel

_IN_LAYER = re.compile(r"\.(layers|layer|h|block)\.\d+\.")
# The feed-forward's last matrix and the attention's, of every family there is.
_FEED_FORWARD = (
    r"\.(mlp\.(down_proj|c_proj|dense_4h_to_h|Wo)|ffn\.lin2|DenseReluDense\.wo|fc2)$"
    r"|\.\d+\.output\.dense$"
)
_OF_ATTENTION = (
    r"\.(self_attn\.(o_proj|out_proj)|attn\.(c_proj|Wo)|attention\.(dense|out_lin)"
    r"|attention\.output\.dense|EncDecAttention\.o|SelfAttention\.o|encoder_attn\.out_proj)$"
)
_KEYS_AND_VALUES = (
    r"\.(k_proj|v_proj|c_attn|query_key_value|Wqkv|key|value|k_lin|v_lin"
    r"|SelfAttention\.[kv]|EncDecAttention\.[kv])$"
)
_AUTO = {"ia3": (_KEYS_AND_VALUES, _FEED_FORWARD), "bottleneck": (_OF_ATTENTION, _FEED_FORWARD)}
ALL = ("all", "all-linear")


def targets(model: AnyModel, adapter: BesideMatrices) -> list[str]:
    """Whole names of the matrices that the patterns mean.

    Raises: ConfigError if one matches nothing, naming what there is.
    """
    matrices = [n for n, m in model.named_modules() if _is_matrix(m) and _IN_LAYER.search(n)]
    found: set[str] = set()
    for pattern in adapter.targets:
        matched = [n for n in matrices if _is_meant(n, pattern, adapter.kind)]
        if not matched:
            short = sorted({_IN_LAYER.split(n)[-1] for n in matrices})
            refuse_pattern("model.adapter.targets", pattern, short)
        found |= set(matched)
    return sorted(found)


def is_feed_forward(name: str) -> bool:
    """Is it the feed-forward's last matrix, of which IA3 scales what it reads?"""
    return re.search(_FEED_FORWARD, name) is not None


def trained_whole(model: AnyModel, adapter: BesideMatrices) -> list[nn.Parameter]:
    """A head on a trunk in any case, nobody has trained it before; and what is asked for.

    Raises: ConfigError if a name matches no module, naming what there is.
    """
    # A reward's head is called score.
    has_head = isinstance(model, EncoderModel) or hasattr(model, "score")
    found = _outside_the_trunk(model) if has_head else []
    named = [(n, m) for n, m in model.named_modules() if n]
    modules = [(n, m) for n, m in named if next(m.parameters(), None) is not None]
    for pattern in adapter.modules_to_save:
        matched = [m for n, m in modules if _matches(n, pattern)]
        if not matched:
            outside = sorted({n for n, _ in modules if not _IN_LAYER.search(f"{n}.")})
            refuse_pattern("model.adapter.modules_to_save", pattern, outside)
        found += [p for m in matched for p in m.parameters()]
    return found


def outside_the_trunk(model: AnyModel) -> list[str]:
    """Names of the head's own parameters, a pooler's with them; a tied embedding is the trunk's."""
    trunk = f"{model.hf.base_model_prefix}."
    return [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(trunk) or name.startswith(f"{trunk}pooler.")
    ]


def refuse_pattern(where: str, pattern: str, names: list[str]) -> NoReturn:
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    raise ConfigError([Problem(where, f"{pattern!r} matches nothing; there is {shown}", "")])


def _outside_the_trunk(model: AnyModel) -> list[nn.Parameter]:
    return [model.get_parameter(name) for name in outside_the_trunk(model)]


def _is_meant(name: str, pattern: str, kind: str) -> bool:
    if pattern in ALL:
        return True
    if pattern == "auto" and kind in _AUTO:
        return any(re.search(one, name) for one in _AUTO[kind])
    return _matches(name, pattern)


def _matches(name: str, pattern: str) -> bool:
    if "*" in pattern:
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
