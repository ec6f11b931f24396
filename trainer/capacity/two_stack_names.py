"""Every parameter's name of an encoder-decoder, as Hugging Face's and ours.

Held against the models themselves by tests/contract/test_trainable.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from trainer.capacity.shape import Shape, TensorGroup, tensors

Dims = tuple[int, ...]
# T5's table of distances: it lies in a layer, and is no matrix that anything stands beside.
DISTANCES: Final = "relative_attention_bias"
# Of a group of trainer/capacity/shape.py -> the module's name. {s}: the stack; {i}: its layer; {f}:
# the number of the feed-forward within T5's block, which follows what attends.
_T5: Final = {
    "embedding": "shared",
    "position_bias": f"{{s}}.block.0.layer.0.SelfAttention.{DISTANCES}",
    "final_norm": "{s}.final_layer_norm",
    "head": "lm_head",
    "self": "{s}.block.{i}.layer.0.SelfAttention.",
    "self.norm": "{s}.block.{i}.layer.0.layer_norm",
    "cross": "{s}.block.{i}.layer.1.EncDecAttention.",
    "cross.norm": "{s}.block.{i}.layer.1.layer_norm",
    "mlp.up": "{s}.block.{i}.layer.{f}.DenseReluDense.wi",
    "mlp.gate": "{s}.block.{i}.layer.{f}.DenseReluDense.wi_0",
    "mlp.down": "{s}.block.{i}.layer.{f}.DenseReluDense.wo",
    "mlp.norm": "{s}.block.{i}.layer.{f}.layer_norm",
}
_BART: Final = {
    "embedding": "model.shared",
    "position_embedding": "model.{s}.embed_positions",
    "embedding_norm": "model.{s}.layernorm_embedding",
    "self": "model.{s}.layers.{i}.self_attn.",
    "self.norm": "model.{s}.layers.{i}.self_attn_layer_norm",
    "cross": "model.{s}.layers.{i}.encoder_attn.",
    "cross.norm": "model.{s}.layers.{i}.encoder_attn_layer_norm",
    "mlp.up": "model.{s}.layers.{i}.fc1",
    "mlp.down": "model.{s}.layers.{i}.fc2",
    "mlp.norm": "model.{s}.layers.{i}.final_layer_norm",
}
_OF_ATTENTION: Final = {
    "t5": {"q": "q", "k": "k", "v": "v", "o": "o"},
    "bart": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"},
}
_STACKS: Final = ("encoder", "decoder")


def parameters_of_two_stacks(shape: Shape) -> Iterator[tuple[str, Dims]]:
    """(name, shape) of each; matrices as (outputs, inputs)."""
    for group in tensors(shape):
        stack, _, rest = group.name.partition(".")
        if stack in _STACKS:
            template = _in_layer(shape, rest)
            for i in range(group.copies):
                yield _filled(template, stack, i), group.dims
        else:
            template = _outside(shape, group)
            for stack in _STACKS[: group.copies]:
                yield _filled(template, stack, 0), group.dims


def _in_layer(shape: Shape, name: str) -> str:
    """`name`: without its stack, as self.q.weight or mlp.norm.bias."""
    module, _, leaf = name.rpartition(".")
    table = _table(shape)
    if module in table:
        found = table[module]
        if shape.gated and module == "mlp.up":
            found = f"{found}_1"
        return f"{found}.{leaf}"
    part, _, which = module.partition(".")
    return f"{table[part]}{_OF_ATTENTION[shape.family][which]}.{leaf}"


def _outside(shape: Shape, group: TensorGroup) -> str:
    module, _, leaf = group.name.rpartition(".")
    return f"{_table(shape)[module]}.{leaf}"


def _table(shape: Shape) -> Mapping[str, str]:
    return _T5 if shape.family == "t5" else _BART


def _filled(template: str, stack: str, number: int) -> str:
    behind = "1" if stack == "encoder" else "2"
    return template.replace("{s}", stack).replace("{i}", str(number)).replace("{f}", behind)
