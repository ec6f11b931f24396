"""From what `make_model` returns to parameters one can train: real, in the right dtype.

`make_model` may leave parameters on the meta device (values come later, through `Engine.load`):
then nothing larger than one parameter is ever whole on a rank under ZeRO-3. Buffers keep their
dtype: rotary frequencies lose their meaning in bf16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from trainer.errors import ModelError

Precision = Literal["fp32", "bf16", "autocast", "fp16"]
FillFrozen = Callable[[str, nn.Parameter], None]
MakeModel = Callable[[], nn.Module]
MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


def weight_dtype(precision: Precision) -> torch.dtype:
    """What weights are stored in for compute; masters are always fp32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def settle(
    model: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    each: Callable[[nn.Parameter], None] = lambda p: None,
) -> None:
    """Make every parameter real, one after another, and show it to `each` before the next.

    Parameters on meta become zeros, but frozen ones, which no `load` fills: a model that has them
    has a function `fill_frozen(name, parameter)` too. Tied ones stay one parameter.
    Raises: ModelError for a frozen parameter without, or a buffer on meta: nobody would fill it.
    """
    fill_frozen = getattr(model, "fill_frozen", None)
    done: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # holds the old ones: ids stay theirs
    for prefix, module in model.named_modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(old) not in done:
                full = f"{prefix}.{name}".lstrip(".")
                new = _real(old, full, dtype=dtype, device=device, fill_frozen=fill_frozen)
                each(new)
                done[id(old)] = (old, new)
            setattr(module, name, done[id(old)][1])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                where = f"{prefix}.{name}".lstrip(".")
                raise ModelError(f"buffer {where} of the model was left on the meta device")
            setattr(module, name, buffer.to(device))


def _real(
    old: nn.Parameter,
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    fill_frozen: FillFrozen | None,
) -> nn.Parameter:
    to = dtype if old.is_floating_point() else old.dtype
    if not old.is_meta:
        old.data = old.data.to(device=device, dtype=to).contiguous()
        return old
    if not old.requires_grad and fill_frozen is None:
        raise ModelError(f"frozen parameter {name} has no values: only trained ones are loaded")
    values = torch.zeros(old.shape, dtype=to, device=device)
    new = nn.Parameter(values, requires_grad=old.requires_grad)
    if not old.requires_grad and fill_frozen is not None:
        fill_frozen(name, new)
    new.__dict__.update(old.__dict__)
    return new


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, in the model's order."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


@contextmanager
def whole_shapes(named: Iterable[tuple[str, Any]]) -> Iterator[None]:
    """Let parameters that ZeRO-3 has partitioned show their whole shapes, at no memory.

    Partitioned ones look like empty vectors, and parameter groups are chosen by `ndim`.
    """
    hidden = [(p, p.data) for _, p in named if hasattr(p, "ds_shape")]
    for p, data in hidden:
        p.data = data.new_zeros(()).expand(p.ds_shape)
    yield
    for p, data in hidden:
        p.data = data


def compute_in_bf16(model: nn.Module, device: torch.device) -> None:
    """Run `model.forward` under autocast; weights, gradients and their reduction stay fp32.

    Ours instead of DeepSpeed's `torch_autocast`: that one also reduces gradients in bf16, and so
    would differ from `plain`.
    """
    forward: Callable[..., Any] = model.forward

    @functools.wraps(forward)
    def forward_in_bf16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    model.forward = forward_in_bf16
