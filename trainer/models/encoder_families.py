"""The families of encoders: where transformers keeps their parts, and how a shape is said.

A row here and its tensors in trainer/capacity are all that a new family needs; the tests of
tests/contract/test_encoder.py then hold it against Hugging Face's own classes.

Shapes: E examples, D hidden size, C labels, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config.sections.model import EncoderShape
from trainer.errors import ConfigError, Problem
from trainer.models.heads import HeadKind


@dataclass(frozen=True)
class EncoderFamily:
    """`pooled`: an example's first hidden state -> its logits, by the family's own modules.

    `before_vocabulary`: hidden states -> what goes into the vocabulary's projection, which is the
    submodule `vocabulary`. `classifier` gives logits of tokens and of spans.
    """

    name: str
    config_class: str
    model_classes: Mapping[HeadKind, str]
    settings: Callable[[EncoderShape], dict[str, Any]]
    pooled: Callable[[Any, torch.Tensor], torch.Tensor]
    before_vocabulary: Callable[[Any, torch.Tensor], torch.Tensor]
    vocabulary: str
    tokens: Callable[[Any, torch.Tensor], torch.Tensor]
    spans: Callable[[Any, torch.Tensor], torch.Tensor]
    has_segments: bool = False

    def model_class(self, kind: HeadKind) -> str:
        """Raises: ConfigError if the family has no such head."""
        found = self.model_classes.get(kind)
        if found is None:
            able = ", ".join(f.name for f in FAMILIES.values() if kind in f.model_classes)
            what = f"{self.name} has no {kind} head" + (f"; {able} has one" if able else "")
            raise ConfigError([Problem("model.family", what, "")])
        return found


def _heads(prefix: str, *, nsp: bool = False) -> dict[HeadKind, str]:
    classes: dict[HeadKind, str] = {
        "mlm": f"{prefix}ForMaskedLM",
        "sequence": f"{prefix}ForSequenceClassification",
        "tokens": f"{prefix}ForTokenClassification",
        "spans": f"{prefix}ForQuestionAnswering",
    }
    return classes | ({"nsp": f"{prefix}ForPreTraining"} if nsp else {})


def first_position(config: Any) -> int:
    """The position id of a document's first token: RoBERTa's begin after the padding's own."""
    return int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0


# --- how a shape is said --------------------------------------------------------------------------


def _bert(s: EncoderShape) -> dict[str, Any]:
    return {
        "hidden_size": s.hidden_size,
        "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.num_hidden_layers,
        "num_attention_heads": s.num_attention_heads,
        "max_position_embeddings": s.max_position_embeddings,
        "type_vocab_size": s.type_vocab_size,
        "layer_norm_eps": s.norm_eps,
        "hidden_dropout_prob": s.dropout,
        "attention_probs_dropout_prob": s.dropout,
    }


def _distilbert(s: EncoderShape) -> dict[str, Any]:
    return {
        "dim": s.hidden_size,
        "hidden_dim": s.intermediate_size,
        "n_layers": s.num_hidden_layers,
        "n_heads": s.num_attention_heads,
        "max_position_embeddings": s.max_position_embeddings,
        "sinusoidal_pos_embds": False,
        "dropout": s.dropout,
        "attention_dropout": s.dropout,
    }


def _modernbert(s: EncoderShape) -> dict[str, Any]:
    return {
        "hidden_size": s.hidden_size,
        "intermediate_size": s.intermediate_size,
        "num_hidden_layers": s.num_hidden_layers,
        "num_attention_heads": s.num_attention_heads,
        "max_position_embeddings": s.max_position_embeddings,
        "norm_eps": s.norm_eps,
        "attention_dropout": s.dropout,
        "mlp_dropout": s.dropout,
        "embedding_dropout": s.dropout,
        "classifier_dropout": s.dropout,
        "local_attention": s.local_attention,
        "global_attn_every_n_layers": s.global_attention_every,
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }


# --- heads ----------------------------------------------------------------------------------------


def _bert_pooled(hf: Any, first_E1D: torch.Tensor) -> torch.Tensor:
    pooled_ED = hf.base_model.pooler(first_E1D)
    if hasattr(hf, "classifier"):
        return hf.classifier(hf.dropout(pooled_ED))  # type: ignore[no-any-return]
    return hf.cls.seq_relationship(pooled_ED)  # type: ignore[no-any-return]


def _distilbert_pooled(hf: Any, first_E1D: torch.Tensor) -> torch.Tensor:
    pooled_ED = torch.relu(hf.pre_classifier(first_E1D[:, 0]))
    return hf.classifier(hf.dropout(pooled_ED))  # type: ignore[no-any-return]


def _modernbert_classes(hf: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hf.classifier(hf.drop(hf.head(hidden)))  # type: ignore[no-any-return]


def _roberta_before(hf: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    dense_ND = torch.nn.functional.gelu(hf.lm_head.dense(hidden_ND))
    return hf.lm_head.layer_norm(dense_ND)  # type: ignore[no-any-return]


def _distilbert_before(hf: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    return hf.vocab_layer_norm(hf.activation(hf.vocab_transform(hidden_ND)))  # type: ignore[no-any-return]


_LIST = (
    EncoderFamily(
        name="bert",
        config_class="BertConfig",
        model_classes=_heads("Bert", nsp=True),
        settings=_bert,
        pooled=_bert_pooled,
        before_vocabulary=lambda hf, h: hf.cls.predictions.transform(h),
        vocabulary="cls.predictions.decoder",
        tokens=lambda hf, h: hf.classifier(hf.dropout(h)),
        spans=lambda hf, h: hf.qa_outputs(h),
        has_segments=True,
    ),
    EncoderFamily(
        name="roberta",
        config_class="RobertaConfig",
        model_classes=_heads("Roberta"),
        settings=_bert,
        pooled=lambda hf, first_E1D: hf.classifier(first_E1D),
        before_vocabulary=_roberta_before,
        vocabulary="lm_head.decoder",
        tokens=lambda hf, h: hf.classifier(hf.dropout(h)),
        spans=lambda hf, h: hf.qa_outputs(h),
        has_segments=True,
    ),
    EncoderFamily(
        name="distilbert",
        config_class="DistilBertConfig",
        model_classes=_heads("DistilBert"),
        settings=_distilbert,
        pooled=_distilbert_pooled,
        before_vocabulary=_distilbert_before,
        vocabulary="vocab_projector",
        tokens=lambda hf, h: hf.classifier(hf.dropout(h)),
        spans=lambda hf, h: hf.qa_outputs(hf.dropout(h)),
    ),
    EncoderFamily(
        name="modernbert",
        config_class="ModernBertConfig",
        model_classes=_heads("ModernBert"),
        settings=_modernbert,
        pooled=lambda hf, first_E1D: _modernbert_classes(hf, first_E1D[:, 0]),
        before_vocabulary=lambda hf, h: hf.head(h),
        vocabulary="decoder",
        tokens=_modernbert_classes,
        spans=_modernbert_classes,
    ),
)
FAMILIES: dict[str, EncoderFamily] = {family.name: family for family in _LIST}
