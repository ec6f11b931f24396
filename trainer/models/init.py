"""Initial values as a pure function of (seed, parameter name, element index).

Any range of any tensor can be made alone, at the cost of its own length, so that ranks draw only
what they own and every ZeRO stage and world size starts from the same model. Counter-based: a
tensor's stream is Philox-4x64 keyed by a hash of (seed, name), read at any place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from trainer.errors import ModelError
from trainer.models.adapters import STARTING, base_name, is_adapter
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import MASTER, Fragment

# Elements made together. Blocks start at multiples of it, so that how a range is cut never changes
# which instructions compute an element (vector bodies and tails may round differently).
_BLOCK = 1 << 14
_UNIT = 2.0**-32


@dataclass(frozen=True)
class Rule:
    """How a tensor starts: normal(0, std), uniform between -std and std, ones or zeros.

    `cut`: no value lies further from 0 than so many `std`; 0: any may.
    """

    kind: Literal["normal", "uniform", "ones", "zeros"]
    std: float = 0.0
    cut: float = 0.0


class InitialValues:
    """A FragmentSource: weights by rule, moments 0."""

    def __init__(self, rules: Mapping[str, Rule], seed: int) -> None:
        self._rules = dict(rules)
        self._seed = seed

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if no rule knows the tensor."""
        if fragment.kind != MASTER:
            out.zero_()
            return
        rule = self._rules.get(fragment.name)
        if rule is None:
            raise ModelError(f"no initial values for {fragment.name}: the model has no such tensor")
        if rule.kind in ("ones", "zeros"):
            out.fill_(1.0 if rule.kind == "ones" else 0.0)
            return
        filled = 0
        for piece in standard_normal(self._seed, fragment.name, fragment.start, fragment.stop):
            drawn = _cut(piece, rule.cut) if rule.cut else piece
            if rule.kind == "uniform":
                drawn = torch.erf(piece.double() / math.sqrt(2.0)).float()
            out[filled : filled + len(piece)].copy_(drawn.mul_(rule.std))
            filled += len(piece)


def standard_normal(seed: int, name: str, start: int, stop: int) -> Iterator[torch.Tensor]:
    """Elements [start, stop) of the endless stream of normal(0, 1) of (seed, name), in pieces.

    Box-Muller in float64, rounded to fp32 at the end: last-bit differences of `log` and `cos`
    between processors then practically never survive. Tails reach 6.7 standard deviations.
    """
    first = start // _BLOCK
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    # One Philox counter value gives four 64-bit words; an element takes half a word.
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first * _BLOCK // 8)
    for block in range(first, -(-stop // _BLOCK)):
        words = torch.from_numpy(bits.random_raw(_BLOCK // 2).view(np.int32)).view(2, -1)
        uniform = words.double().mul_(_UNIT).add_(0.5 + _UNIT / 2)  # strictly between 0 and 1
        radius = uniform[0].log_().mul_(-2.0).sqrt_()
        angle = uniform[1].mul_(2.0 * math.pi)
        values = torch.empty(_BLOCK, dtype=torch.float32)
        values[: _BLOCK // 2] = angle.cos().mul_(radius)
        values[_BLOCK // 2 :] = angle.sin_().mul_(radius)
        offset = block * _BLOCK
        yield values[max(start - offset, 0) : stop - offset]


def _cut(normal: torch.Tensor, cut: float) -> torch.Tensor:
    """normal(0, 1) -> the same distribution within +-cut, element by element.

    By its quantile function, so that an element stays a function of its own number alone: drawing
    again until one fits would not.
    """
    within = math.erf(cut / math.sqrt(2.0))
    quantile = torch.erf(normal.double() / math.sqrt(2.0)) * within
    return (torch.erfinv(quantile) * math.sqrt(2.0)).float()


def initial_rules(model: AnyModel) -> dict[str, Rule]:
    """Hugging Face's conventions, by kind of module; a meta model will do.

    normal(0, initializer_range) for linear layers and embeddings, ones for norm weights, zeros for
    biases; GPT-2 scales its residual projections by 1/sqrt(2 x layers), ModernBERT draws from
    normals cut off, of three widths.
    Source: transformers 5.23, PreTrainedModel._init_weights and those of the families.
    Raises: ModelError for a parameter that none of this covers.
    """
    config = model.hf.config
    if getattr(config, "sinusoidal_pos_embds", False):
        raise ModelError(
            "no initial values for sinusoidal positions: take model.weights=pretrained"
        )
    rules: dict[str, Rule] = {}
    for path, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if leaf == STARTING:
                continue  # begins as the matrix beside it
            if is_adapter(name):
                rules[name] = _adapter_rule(name, module)
            elif leaf == "bias":
                rules[name] = Rule("zeros")
            elif "Norm" in type(module).__name__:
                rules[name] = Rule("ones")
            elif leaf == "weight" and not isinstance(module, nn.modules.conv._ConvNd):
                rules[name] = _matrix_rule(config, path.removesuffix(".base_layer"))
            else:
                raise ModelError(f"no rule for initial values of {name} ({type(module).__name__})")
    logical = {name for name, _ in model.named_parameters()}
    return {base_name(name): rule for name, rule in rules.items() if name in logical}


def _adapter_rule(name: str, module: nn.Module) -> Rule:
    """What an adapter adds is 0 at first, and a factor 1. A as peft 0.21 draws it,
    kaiming_uniform(sqrt 5); a bottleneck's first matrix as transformers' projections.

    A magnitude's rule is never asked: starting.py measures the frozen matrix.
    """
    if ".ia3_l." in name:
        return Rule("ones")
    if name.startswith("prompt."):
        return _prompt_rule(name, module)
    if ".bottleneck.down." in name:
        return Rule("normal", 0.02) if name.endswith(".weight") else Rule("zeros")
    if ".lora_A." in name:
        assert isinstance(module, nn.Linear)
        return Rule("uniform", module.in_features**-0.5)
    return Rule("zeros")


def _prompt_rule(name: str, module: nn.Module) -> Rule:
    """Embeddings as a model's own usually are; a small network as torch draws its layers."""
    if isinstance(module, nn.Linear) and name.endswith(".weight"):
        return Rule("uniform", module.in_features**-0.5)
    return Rule("zeros") if name.endswith(".bias") else Rule("normal", 0.02)


def _matrix_rule(config: Any, path: str) -> Rule:
    if config.model_type == "t5":
        return Rule("normal", _t5_std(config, path))
    if config.model_type == "bart":
        return Rule("normal", float(config.init_std))
    std = float(config.initializer_range)
    residual = std / math.sqrt(2 * config.num_hidden_layers)
    leaf = path.rpartition(".")[2]
    if config.model_type == "gpt2":
        return Rule("normal", residual if leaf == "c_proj" else std)
    if config.model_type == "modernbert":
        cut = float(config.initializer_cutoff_factor or 3.0)
        widths = {"Wo": residual, "dense": residual, "classifier": config.hidden_size**-0.5}
        return Rule("normal", widths.get(leaf, std), cut)
    return Rule("normal", std)


def _t5_std(config: Any, path: str) -> float:
    """Source: transformers 5.23, T5PreTrainedModel._init_weights."""
    width, factor = config.d_model, float(config.initializer_factor)
    leaf = path.rpartition(".")[2]
    inner = {
        "q": (width * config.d_kv) ** -0.5,
        "o": (config.num_heads * config.d_kv) ** -0.5,
        "wo": config.d_ff**-0.5,
        "shared": 1.0,
        "embed_tokens": 1.0,
        "lm_head": 1.0,
    }
    return factor * float(inner.get(leaf, width**-0.5))
