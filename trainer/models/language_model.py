"""A causal language model: Hugging Face's decoder below our head.

Shapes: R rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from trainer.models.head import Head

_PREFIX = "hf."


def hf_name(name: str) -> str:
    """A parameter's name as Hugging Face's own model has it, without our and torch's wrappers."""
    name = name.replace("_orig_mod.", "").removeprefix("module.")
    return name.removeprefix(_PREFIX)


class LanguageModel(nn.Module):
    """`hf`: a Hugging Face causal model, whose `lm_head` this replaces by ours.

    A tied head is one logical tensor: it appears once, under the embedding's name.
    """

    def __init__(self, hf: Any, *, loss_chunk_tokens: int) -> None:
        super().__init__()
        old = hf.lm_head
        bias = getattr(old, "bias", None)
        hf.lm_head = Head(old.weight, bias, chunk_tokens=loss_chunk_tokens)
        self.hf = hf
        self._exact_buffers: dict[str, torch.Tensor] | None = None

    def forward(
        self,
        inputs_RT: torch.Tensor,
        positions_RT: torch.Tensor,
        labels_RT: torch.Tensor | None = None,
        *,
        want: Literal["log_probs", "scores", "logits"] = "log_probs",
    ) -> Any:
        """What the head says about the labels (already shifted).

        log_probs: fp32 (R, T), 0 where the label is IGNORED. scores: the same without gradient,
        and bool (R, T), whether the label was the first choice. logits: (R, T, V); no labels.

        Documents packed in a row are kept apart by `positions_RT` alone, which restart at 0: no
        mask and no cache, or Hugging Face would let rows leak (see attention.py).
        """
        if self._exact_buffers is None:
            self.restore_buffers()
        decoded = self.hf.base_model(
            input_ids=inputs_RT, position_ids=positions_RT, use_cache=False
        )
        hidden_RTD = decoded.last_hidden_state
        if want == "logits":
            return self.hf.lm_head(hidden_RTD)
        if want == "scores":
            return self.hf.lm_head(hidden_RTD, labels_RT, with_correct=True)
        return self.hf.lm_head(hidden_RTD, labels_RT)

    def logits(self, inputs_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
        """All logits, (R, T, V): for generation and tests."""
        logits: torch.Tensor = self(inputs_RT, positions_RT, want="logits")
        return logits

    def hf_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every logical parameter once, by Hugging Face's name."""
        return ((hf_name(name), p) for name, p in self.named_parameters())

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers: what activation checkpointing and compilation work on."""
        lists = [m for m in self.hf.base_model.children() if isinstance(m, nn.ModuleList)]
        return list(lists[0])

    def restore_buffers(self) -> None:
        """Give every rotary buffer its exact fp32 value again.

        `module.bfloat16()`, which DeepSpeed calls, and `zero.Init`, which rounds what torch.arange
        makes, leave frequencies in bf16: angles wrong by radians at far positions, without a word.
        """
        if self._exact_buffers is None:
            self._exact_buffers = self._compute_buffers()
        for name, value in self._exact_buffers.items():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            held = module._buffers[leaf]
            if held is not None and held.is_meta:
                module._buffers[leaf] = value.clone()
            elif held is not None:
                module._buffers[leaf] = value.to(held.device, copy=True)

    def _compute_buffers(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for path, module in self.named_modules():
            names = [n for n, b in module._buffers.items() if b is not None]
            if not names:
                continue
            kept = {n: module._buffers[n] for n in names}
            for n in names:
                shape = kept[n].shape
                module._buffers[n] = torch.empty(shape, dtype=torch.float32, device="cpu")
            self.hf._init_weights(module)  # Hugging Face's own rule for this kind of buffer
            for n in names:
                found[f"{path}.{n}"] = module._buffers[n]
                module._buffers[n] = kept[n]
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LanguageModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.restore_buffers()
        return self


def materialize(model: nn.Module, *, device: torch.device) -> None:
    """Give every meta parameter empty storage on `device`; values come by `engine.load`.

    Tied parameters stay one tensor. Buffers are real already.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:
                empty = torch.empty_like(parameter, device=device)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
    if any(b.device != device for b in model.buffers()):
        model.to(device)


def compile_model(model: LanguageModel) -> None:
    """Compile each decoder layer in place: one graph for all, names of parameters unchanged.

    Whole-model graphs take minutes more and break at ZeRO-3's hooks; layers are where time goes.
    """
    for layer in model.layers:
        layer.compile(dynamic=False)
