"""A fragment: the contiguous piece of one flat tensor that one rank owns."""

from __future__ import annotations

from dataclasses import dataclass

MASTER = "master"  # the kind of the fp32 parameter itself; moments use the optimizer's own names
AVERAGE = "average"  # the kind of the average of the weights, where one is kept (regularize.ema)


@dataclass(frozen=True, order=True)
class Fragment:
    """Elements [start, stop) of the flattened tensor `kind` of parameter `name`.

    `name` is the parameter's name in the model (Hugging Face's), without wrappers; `kind` is
    "master", "average", or the optimizer's name of a moment ("exp_avg", "momentum_buffer", ...).
    `shape` is that of the whole logical tensor.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start
