"""What an adapter's patterns mean, by the names of a model's matrices: shared by plan and model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

Kind = Literal["freeze", "lora", "dora", "ia3", "bottleneck", "prompt", "p_tuning", "prefix"]
VIRTUAL: Final = ("prompt", "p_tuning", "prefix")
_IN_LAYER: Final = re.compile(r"\.(layers|layer|h|block)\.\d+\.")
ALL: Final = ("all", "all-linear")

# The feed-forward's last matrix and the attention's, of every family there is.
_FEED_FORWARD: Final = (
    r"\.(mlp\.(down_proj|c_proj|dense_4h_to_h|Wo)|ffn\.lin2|DenseReluDense\.wo|fc2)$"
    r"|\.\d+\.output\.dense$"
)
_OF_ATTENTION: Final = (
    r"\.(self_attn\.(o_proj|out_proj)|attn\.(c_proj|Wo)|attention\.(dense|out_lin)"
    r"|attention\.output\.dense|EncDecAttention\.o|SelfAttention\.o|encoder_attn\.out_proj)$"
)
_KEYS_AND_VALUES: Final = (
    r"\.(k_proj|v_proj|c_attn|query_key_value|Wqkv|key|value|k_lin|v_lin"
    r"|SelfAttention\.[kv]|EncDecAttention\.[kv])$"
)
_AUTO: Final = {
    "ia3": (_KEYS_AND_VALUES, _FEED_FORWARD),
    "bottleneck": (_OF_ATTENTION, _FEED_FORWARD),
}


@dataclass(frozen=True)
class Adaptation:
    """`patterns`: of matrices (lora ... bottleneck), or of parameters (freeze). `size`: the rank,
    the width of the narrow layer, or virtual tokens. `whole`: modules trained beside.
    """

    kind: Kind
    patterns: tuple[str, ...]
    size: int = 0
    whole: tuple[str, ...] = ()


def meant(name: str, pattern: str, kind: str) -> bool:
    """Is the matrix `name` (with its layer, without .weight) one that the pattern means?"""
    if pattern in ALL:
        return True
    if pattern == "auto" and kind in _AUTO:
        return any(re.search(one, name) for one in _AUTO[kind])
    return named(name, pattern)


def named(name: str, pattern: str) -> bool:
    """By its whole name, the end of it, or a pattern with *."""
    if "*" in pattern:
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


def is_in_layer(name: str) -> bool:
    return _IN_LAYER.search(name) is not None


def within_layer(name: str) -> str:
    """What a matrix is called in its layer, as people name targets."""
    return _IN_LAYER.split(name)[-1]


def is_feed_forward(name: str) -> bool:
    """Is it the feed-forward's last matrix, of which IA3 scales what it reads?"""
    return re.search(_FEED_FORWARD, name) is not None


def nothing_matched(pattern: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{pattern!r} matches nothing; there is {shown}"
