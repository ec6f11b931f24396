"""An encoder under the family's own head, parameters under Hugging Face's names.

Examples packed into a row are kept apart by a mask of blocks (masks.py): an encoder attends both
ways, so that positions which restart are not enough for it.

Shapes: R rows, T positions, E examples of the batch, C labels, V vocabulary, D hidden size,
N = R x T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from trainer.batch import IGNORED
from trainer.models.buffers import exact_buffers, restore_buffers
from trainer.models.encoder_families import EncoderFamily, first_position
from trainer.models.head import Head
from trainer.models.heads import HeadSpec
from trainer.models.masks import as_taken, same_document, within

Fields = Mapping[str, torch.Tensor]
Want = Literal[
    "mlm", "mlm_scores", "mlm_logits", "nsp", "nsp_scores", "sequence", "tokens", "spans", "hidden"
]


class EncoderModel(nn.Module):
    """`hf`: the family's class for the head. Its children become ours, so that every parameter
    keeps its name; the projection onto the vocabulary is replaced by our `Head`.
    """

    hf: Any  # kept beside nn.Module's registry, or every name would appear twice

    def __init__(
        self, hf: Any, *, family: EncoderFamily, head: HeadSpec, loss_chunk_tokens: int
    ) -> None:
        super().__init__()
        self.family = family
        self.head_spec = head
        if head.kind in ("mlm", "nsp"):
            _own_projection(hf, family.vocabulary, chunk_tokens=loss_chunk_tokens)
        # Padding sees and is seen by padding alone, so its embedding gets no gradient anyway; but
        # a real token that a config calls padding would silently get none.
        for module in hf.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
        for name, child in hf.named_children():
            self.add_module(name, child)
        self.__dict__["hf"] = hf
        self._exact_buffers = exact_buffers(self, hf)
        restore_buffers(self, self._exact_buffers)

    def forward(
        self, fields: Fields, *, want: Want, label_smoothing: float = 0.0, z_loss: float = 0.0
    ) -> Any:
        """What the head says of a batch's fields.

        hidden: (R, T, D). sequence: logits (E, C) at `first_E`; rows of -1 mean nothing.
        tokens: logits (R, T, C). spans: logits of starts and ends, two (R, T).
        mlm: fp32 (R, T), the log-probability of `labels_RT`, 0 where IGNORED; only labelled tokens
        go through the vocabulary, and `label_smoothing` and `z_loss` change it as Head says.
        mlm_scores: that without gradient, and bool (R, T), whether the
        label was the first choice. mlm_logits: (R, T, V).
        nsp: a pair, mlm's and logits (E, 2). nsp_scores: mlm_scores' two and those logits.

        Fields: inputs_RT; positions_RT (restart at 0 with each example); documents_RT (0: padding);
        segments_RT where the family has them. Without documents_RT every row is one whole example.
        """
        hidden_RTD = self._hidden(fields)
        if want == "hidden":
            return hidden_RTD
        if want == "sequence":
            return self._pooled(hidden_RTD, fields)
        if want == "tokens":
            return self.family.tokens(self.hf, hidden_RTD)
        if want == "spans":
            logits_RT2 = self.family.spans(self.hf, hidden_RTD)
            return logits_RT2[..., 0], logits_RT2[..., 1]
        if want == "mlm_logits":
            return self._projection(self.family.before_vocabulary(self.hf, hidden_RTD))
        if want in ("mlm_scores", "nsp_scores"):
            scores = self._masked(hidden_RTD, fields["labels_RT"], with_correct=True)
            return scores if want == "mlm_scores" else (*scores, self._pooled(hidden_RTD, fields))
        labels_RT = fields["labels_RT"]
        log_probs_RT = self._masked(
            hidden_RTD, labels_RT, label_smoothing=label_smoothing, z_loss=z_loss
        )
        if want == "nsp":
            return log_probs_RT, self._pooled(hidden_RTD, fields)
        return log_probs_RT

    @property
    def layers(self) -> list[nn.Module]:
        """What activation checkpointing and compilation work on."""
        lists = (m for m in self.hf.base_model.modules() if isinstance(m, nn.ModuleList))
        return list(next(lists))

    @property
    def _projection(self) -> nn.Module:
        return self.get_submodule(self.family.vocabulary)

    def _hidden(self, fields: Fields) -> torch.Tensor:
        given: dict[str, Any] = {"input_ids": fields["inputs_RT"]}
        if self.family.has_segments and "segments_RT" in fields:
            given["token_type_ids"] = fields["segments_RT"]
        if "positions_RT" in fields:
            given["position_ids"] = fields["positions_RT"] + first_position(self.hf.config)
        documents_RT = fields.get("documents_RT")
        if documents_RT is not None:
            given["attention_mask"] = self._mask(documents_RT)
        # A pooler runs here too, on the rows' first tokens, and its answer is not used: the heads
        # ask it about the examples' first tokens.
        return self.hf.base_model(**given).last_hidden_state  # type: ignore[no-any-return]

    def _mask(self, documents_RT: torch.Tensor) -> Any:
        config = self.hf.config
        attention, dtype = config._attn_implementation, next(self.parameters()).dtype
        whole = same_document(documents_RT, documents_RT)
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return as_taken(whole, attention, dtype)
        return {
            "full_attention": as_taken(whole, attention, dtype),
            "sliding_attention": as_taken(within(whole, config.sliding_window), attention, dtype),
        }

    def _pooled(self, hidden_RTD: torch.Tensor, fields: Fields) -> torch.Tensor:
        first_E = fields["first_E"].clamp(min=0)
        if getattr(self.hf.config, "classifier_pooling", "cls") == "mean":
            pooled_ED = _means(hidden_RTD, fields["documents_RT"], first_E)
        else:
            pooled_ED = hidden_RTD.flatten(0, 1)[first_E]
        return self.family.pooled(self.hf, pooled_ED.unsqueeze(1))

    def _masked(
        self,
        hidden_RTD: torch.Tensor,
        labels_RT: torch.Tensor,
        *,
        with_correct: bool = False,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Any:
        labels_N = labels_RT.flatten()
        # Asks the device how many there are: a wait of microseconds against a projection of all
        # tokens, of which six in seven would be thrown away.
        chosen_K = (labels_N != IGNORED).nonzero().squeeze(-1)
        if not len(chosen_K):  # one, ignored: all ranks run the head, or ZeRO-3 would hang
            chosen_K = chosen_K.new_zeros(1)
        before_KD = self.family.before_vocabulary(self.hf, hidden_RTD.flatten(0, 1)[chosen_K])
        said = self._projection(
            before_KD,
            labels_N[chosen_K],
            with_correct=with_correct,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        if not with_correct:
            return _spread(said, chosen_K, labels_RT)
        log_probs_K, correct_K = said
        correct_K = correct_K & (labels_N[chosen_K] != IGNORED)
        return _spread(log_probs_K, chosen_K, labels_RT), _spread(correct_K, chosen_K, labels_RT)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EncoderModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_buffers(self, self._exact_buffers)
        return self


def _own_projection(hf: Any, path: str, *, chunk_tokens: int) -> None:
    owner, _, leaf = path.rpartition(".")
    old = hf.get_submodule(path)
    setattr(hf.get_submodule(owner), leaf, Head(old.weight, old.bias, chunk_tokens=chunk_tokens))


def _spread(values_K: torch.Tensor, chosen_K: torch.Tensor, like_RT: torch.Tensor) -> torch.Tensor:
    whole_N = values_K.new_zeros(like_RT.numel())
    return whole_N.index_copy(0, chosen_K, values_K).view_as(like_RT)


def _means(
    hidden_RTD: torch.Tensor, documents_RT: torch.Tensor, first_E: torch.Tensor
) -> torch.Tensor:
    """(E, D): the mean of each example's hidden states."""
    rows, positions, width = hidden_RTD.shape
    row_R1 = torch.arange(rows, device=hidden_RTD.device).unsqueeze(-1)
    key_N = (row_R1 * (positions + 1) + documents_RT).flatten()
    sums_KD = hidden_RTD.new_zeros(rows * (positions + 1), width)
    sums_KD = sums_KD.index_add(0, key_N, hidden_RTD.flatten(0, 1))
    key_E = key_N[first_E]
    count_E = (key_N == key_E.unsqueeze(-1)).sum(-1, keepdim=True)
    return sums_KD[key_E] / count_E
