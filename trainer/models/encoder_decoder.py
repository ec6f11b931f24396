"""An encoder-decoder under its own vocabulary's head, parameters under Hugging Face's names.

Three masks keep pairs that share a row apart: source with source, target with what lies before it,
target with its own source. T5's positions are differences and stay right in a packed row; BART's
are learned places of the row, so that only the first pair of a row would have its own.

Shapes: R rows, T positions of the source, S of the target, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from trainer.capacity.folder import has_tied_head
from trainer.config.sections.model import EncoderDecoderShape, FolderModel, Model
from trainer.models.buffers import exact_buffers, restore_buffers
from trainer.models.head import Head
from trainer.models.heads import HeadSpec
from trainer.models.masks import as_taken, causal, same_document
from trainer.records.json_file import read_untrusted_json

Fields = Mapping[str, torch.Tensor]
# Where transformers keeps a family: config and model.
FAMILIES: dict[str, tuple[str, str]] = {
    "t5": ("T5Config", "T5ForConditionalGeneration"),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
}
NOT_PACKED = ("bart",)


def settings(s: EncoderDecoderShape) -> dict[str, Any]:
    """How a shape is said in the family's config; which token ends a text, the tokenizer knows."""
    shared = {
        "pad_token_id": s.pad_token_id,
        "decoder_start_token_id": s.decoder_start_token_id,
        "bos_token_id": None,
        "eos_token_id": None,
        "d_model": s.hidden_size,
    }
    if s.family == "t5":
        return shared | {
            "d_ff": s.intermediate_size,
            "d_kv": s.head_dim,
            "num_layers": s.num_hidden_layers,
            "num_decoder_layers": s.num_decoder_layers,
            "num_heads": s.num_attention_heads,
            "feed_forward_proj": "gated-gelu" if s.gated else "relu",
            "tie_word_embeddings": s.tie_word_embeddings,
            "layer_norm_epsilon": s.norm_eps,
            "relative_attention_num_buckets": s.relative_attention_num_buckets,
            "relative_attention_max_distance": s.relative_attention_max_distance,
            "initializer_factor": s.initializer_range,
            "dropout_rate": s.dropout,
        }
    stacks = {
        f"{stack}_{name}": value
        for stack, layers in (("encoder", s.num_hidden_layers), ("decoder", s.num_decoder_layers))
        for name, value in {
            "layers": layers,
            "ffn_dim": s.intermediate_size,
            "attention_heads": s.num_attention_heads,
        }.items()
    }
    return (
        shared
        | stacks
        | {
            "max_position_embeddings": s.max_position_embeddings,
            "forced_eos_token_id": None,
            "init_std": s.initializer_range,
            "dropout": s.dropout,
        }
    )


def has_own_output(section: Model) -> bool:
    """Whether the output is a matrix of its own and not the embedding, as in T5 1.1."""
    if isinstance(section, FolderModel):
        folder = Path(section.path)
        config = read_untrusted_json(folder / "config.json", limit_bytes=1 << 20)
        return not has_tied_head(folder, config)
    return isinstance(section, EncoderDecoderShape) and not section.tie_word_embeddings


def give_own_output(hf: Any) -> None:
    """transformers 5 ties T5's whatever its config says, and unties it if a folder has both."""
    hf.lm_head.weight = nn.Parameter(torch.empty_like(hf.lm_head.weight))


class EncoderDecoderModel(nn.Module):
    """`hf`: the family's class, whose `lm_head` this replaces by ours, chunks and all."""

    hf: Any  # kept beside nn.Module's registry, or every name would appear twice

    def __init__(self, hf: Any, *, loss_chunk_tokens: int) -> None:
        super().__init__()
        self.head_spec = HeadSpec("seq2seq")
        hf.lm_head = Head(hf.lm_head.weight, None, chunk_tokens=loss_chunk_tokens)
        for module in hf.modules():
            if isinstance(module, nn.Embedding):
                module.padding_idx = None
        for name, child in hf.named_children():
            self.add_module(name, child)
        self.__dict__["hf"] = hf
        self._exact_buffers = exact_buffers(self, hf)
        restore_buffers(self, self._exact_buffers)

    def forward(
        self,
        fields: Fields,
        *,
        want: Literal["log_probs", "scores", "logits"] = "log_probs",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Any:
        """What the head says about `labels_RS`, as a LanguageModel does: fp32 (R, S), changed as
        Head says; scores: a pair, without gradient; logits: (R, S, V).

        Fields: inputs_RT, documents_RT; decoder_inputs_RS (already shifted), decoder_documents_RS.
        """
        hidden_RSD = self._decoded(fields)
        if want == "logits":
            return self.hf.lm_head(hidden_RSD)
        labels_RS = fields["labels_RS"]
        if want == "scores":
            return self.hf.lm_head(hidden_RSD, labels_RS, with_correct=True)
        return self.hf.lm_head(
            hidden_RSD, labels_RS, label_smoothing=label_smoothing, z_loss=z_loss
        )

    @property
    def layers(self) -> list[nn.Module]:
        """Both stacks': what activation checkpointing and compilation work on."""
        stacks = (self.hf.get_encoder(), self.hf.get_decoder())
        lists = (next(m for m in s.modules() if isinstance(m, nn.ModuleList)) for s in stacks)
        return [layer for layers in lists for layer in layers]

    def _decoded(self, fields: Fields) -> torch.Tensor:
        source_RT, target_RS = fields["documents_RT"], fields["decoder_documents_RS"]
        encoded = self.hf.get_encoder()(
            input_ids=fields["inputs_RT"],
            attention_mask=self._taken(same_document(source_RT, source_RT)),
        )
        decoded = self.hf.get_decoder()(
            input_ids=fields["decoder_inputs_RS"],
            attention_mask=self._taken(causal(same_document(target_RS, target_RS))),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=self._taken(_own_source(target_RS, source_RT)),
            use_cache=False,
        )
        hidden_RSD: torch.Tensor = decoded.last_hidden_state
        if getattr(self.hf.config, "scale_decoder_outputs", False):  # T5 of the first version
            return hidden_RSD.mul(self.hf.config.d_model**-0.5)
        return hidden_RSD

    def _taken(self, mask: torch.Tensor) -> torch.Tensor:
        config = self.hf.config
        # T5's attention adds its bias of positions to the mask, whatever kernel comes after.
        form = "eager" if config.model_type == "t5" else config._attn_implementation
        return as_taken(mask, form, next(self.parameters()).dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> EncoderDecoderModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_buffers(self, self._exact_buffers)
        return self


def _own_source(target_RS: torch.Tensor, source_RT: torch.Tensor) -> torch.Tensor:
    """As `same_document`; a row without any padding in its source has none for its target's
    padding to attend to, which then attends to everything: its answers are never asked for.
    """
    mask = same_document(target_RS, source_RT)
    return mask | ~mask.any(-1, keepdim=True)
