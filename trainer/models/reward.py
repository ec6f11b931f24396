"""A decoder under one number: how good what was said is. Parameters under Hugging Face's names.

Shapes: R rows, T positions, D hidden size, A answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.models.buffers import exact_buffers, restore_buffers
from trainer.models.heads import HeadSpec


class RewardModel(nn.Module):
    """`hf`: the family's sequence classifier of one label, whose `score` has no bias."""

    hf: Any  # kept beside nn.Module's registry, or every name would appear twice

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.head_spec = HeadSpec("reward")
        for name, child in hf.named_children():
            self.add_module(name, child)
        self.__dict__["hf"] = hf
        self._exact_buffers = exact_buffers(self, hf)
        restore_buffers(self, self._exact_buffers)

    def forward(
        self, inputs_RT: torch.Tensor, positions_RT: torch.Tensor, last_A: torch.Tensor
    ) -> torch.Tensor:
        """fp32 (A), the reward of each answer at its last token, r * T + t in `last_A`.

        Answers that share a row are kept apart as a LanguageModel's documents are: by positions
        that restart.
        """
        decoded = self.hf.base_model(
            input_ids=inputs_RT, position_ids=positions_RT, use_cache=False
        )
        last_AD = decoded.last_hidden_state.flatten(0, 1)[last_A]
        rewards_A1: torch.Tensor = self.hf.score(last_AD)
        return rewards_A1.squeeze(-1).float()

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers: what activation checkpointing and compilation work on."""
        lists = [m for m in self.hf.base_model.children() if isinstance(m, nn.ModuleList)]
        return list(lists[0])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RewardModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_buffers(self, self._exact_buffers)
        return self
