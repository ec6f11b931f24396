"""A causal language model: Hugging Face's decoder below our head, parameters under their names.

Shapes: R rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from trainer.models.buffers import exact_buffers, restore_buffers
from trainer.models.head import Head
from trainer.models.masks import around_prompts, as_taken

REFERENCE = "reference."  # what names of the reference's parameters begin with


class LanguageModel(nn.Module):
    """`hf`: a Hugging Face causal model, whose `lm_head` this replaces by ours.

    Its children become ours, so that every parameter keeps Hugging Face's name without a prefix. A
    tied head is one logical tensor: it appears once, under the embedding's name.
    """

    hf: Any  # kept beside nn.Module's registry, or every name would appear twice

    def __init__(self, hf: Any, *, loss_chunk_tokens: int) -> None:
        super().__init__()
        self.prompt: nn.Module | None = None  # virtual tokens (prompts.py), where there are
        self.reads_prompts_whole = False  # of a loaded model: how it was trained and is asked
        old = hf.lm_head
        bias = getattr(old, "bias", None)
        hf.lm_head = Head(old.weight, bias, chunk_tokens=loss_chunk_tokens)
        for name, child in hf.named_children():
            self.add_module(name, child)
        self.__dict__["hf"] = hf
        self.reference: LanguageModel | None = None  # see keep_reference of build.py
        self._exact_buffers = exact_buffers(self, hf)
        restore_buffers(self, self._exact_buffers)

    def forward(
        self,
        inputs_RT: torch.Tensor,
        positions_RT: torch.Tensor,
        labels_RT: torch.Tensor | None = None,
        *,
        want: Literal["log_probs", "with_reference", "scores", "logits"] = "log_probs",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        prompts_RT: torch.Tensor | None = None,
    ) -> Any:
        """What the head says about the labels (already shifted).

        log_probs: fp32 (R, T), 0 where the label is IGNORED, changed as Head says. with_reference:
        a pair of those, the model's and, without gradient, its reference's. scores: log_probs
        without gradient, and bool (R, T), whether the label was the first choice. logits:
        (R, T, V); no labels.

        Documents packed in a row are kept apart by `positions_RT` alone, which restart at 0: no
        mask and no cache, or Hugging Face would let rows leak (see attention.py). `prompts_RT`,
        bool: positions of prompts, which are read both ways; then there is a mask of ours.
        """
        hidden_RTD = self._hidden(inputs_RT, positions_RT, prompts_RT)
        if want == "logits":
            return self.hf.lm_head(hidden_RTD)
        if want == "scores":
            return self.hf.lm_head(hidden_RTD, labels_RT, with_correct=True)
        log_probs_RT = self.hf.lm_head(
            hidden_RTD, labels_RT, label_smoothing=label_smoothing, z_loss=z_loss
        )
        if want != "with_reference":
            return log_probs_RT
        assert self.reference is not None
        self.reference.eval()  # no dropout, whatever the model around it does
        with torch.no_grad():
            return log_probs_RT, self.reference(inputs_RT, positions_RT, labels_RT)

    def _hidden(
        self,
        inputs_RT: torch.Tensor,
        positions_RT: torch.Tensor,
        prompts_RT: torch.Tensor | None,
    ) -> torch.Tensor:
        """(R, T, hidden size)."""
        if self.prompt is not None:
            assert prompts_RT is None  # refused by the rules
            return self.prompt(self.hf, inputs_RT, positions_RT)  # type: ignore[no-any-return]
        given: dict[str, Any] = {}
        if prompts_RT is not None:
            attention, dtype = self.hf.config._attn_implementation, next(self.parameters()).dtype
            mask_R1TT = around_prompts(positions_RT, prompts_RT)
            given["attention_mask"] = as_taken(mask_R1TT, attention, dtype)
        decoded = self.hf.base_model(
            input_ids=inputs_RT, position_ids=positions_RT, use_cache=False, **given
        )
        return decoded.last_hidden_state  # type: ignore[no-any-return]

    def logits(
        self,
        inputs_RT: torch.Tensor,
        positions_RT: torch.Tensor,
        *,
        prompts_RT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All logits, (R, T, V): for generation and tests."""
        logits: torch.Tensor = self(inputs_RT, positions_RT, want="logits", prompts_RT=prompts_RT)
        return logits

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers: what activation checkpointing and compilation work on."""
        lists = [m for m in self.hf.base_model.children() if isinstance(m, nn.ModuleList)]
        return list(lists[0])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LanguageModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_buffers(self, self._exact_buffers)
        return self


def compile_model(layers: Iterable[nn.Module], *, rows_differ: bool = False) -> None:
    """Compile each layer in place: one graph for all, names of parameters unchanged.
    `rows_differ`: in length, from batch to batch.

    Whole-model graphs take minutes more and break at ZeRO-3's hooks; layers are where time goes.
    """
    for layer in layers:
        layer.compile(dynamic=None if rows_differ else False)
