"""Every parameter's name, as Hugging Face's and ours: what patterns of adapters are matched with.

Held against the models themselves by tests/contract/test_trainable.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from trainer.capacity.shape import Shape, TensorGroup, tensors
from trainer.capacity.two_stack_names import parameters_of_two_stacks

Dims = tuple[int, ...]
# Of a group of trainer/capacity/shape.py -> the module's name; {i}: the layer.
_GATED: Final = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "": "model.layers.{i}.",
}
_GPT2: Final = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attention.query_key_value": "transformer.h.{i}.attn.c_attn",
    "attention.dense": "transformer.h.{i}.attn.c_proj",
    "mlp.up": "transformer.h.{i}.mlp.c_fc",
    "mlp.down": "transformer.h.{i}.mlp.c_proj",
    "input_layernorm": "transformer.h.{i}.ln_1",
    "post_attention_layernorm": "transformer.h.{i}.ln_2",
}
_NEOX: Final = {
    "embedding": "gpt_neox.embed_in",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "lm_head",
    "mlp.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "mlp.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "": "gpt_neox.layers.{i}.",
}


def _bert(p: str) -> dict[str, str]:
    layer = f"{p}.encoder.layer.{{i}}"
    return {
        "embedding": f"{p}.embeddings.word_embeddings",
        "position_embedding": f"{p}.embeddings.position_embeddings",
        "position_embedding.segments": f"{p}.embeddings.token_type_embeddings",
        "embedding_norm": f"{p}.embeddings.LayerNorm",
        "attention.query": f"{layer}.attention.self.query",
        "attention.key": f"{layer}.attention.self.key",
        "attention.value": f"{layer}.attention.self.value",
        "attention.output": f"{layer}.attention.output.dense",
        "attention_norm": f"{layer}.attention.output.LayerNorm",
        "mlp.up": f"{layer}.intermediate.dense",
        "mlp.down": f"{layer}.output.dense",
        "mlp_norm": f"{layer}.output.LayerNorm",
        "head.pooler": f"{p}.pooler.dense",
    }


_DISTILBERT: Final = {
    "embedding": "distilbert.embeddings.word_embeddings",
    "position_embedding": "distilbert.embeddings.position_embeddings",
    "embedding_norm": "distilbert.embeddings.LayerNorm",
    "attention.query": "distilbert.transformer.layer.{i}.attention.q_lin",
    "attention.key": "distilbert.transformer.layer.{i}.attention.k_lin",
    "attention.value": "distilbert.transformer.layer.{i}.attention.v_lin",
    "attention.output": "distilbert.transformer.layer.{i}.attention.out_lin",
    "attention_norm": "distilbert.transformer.layer.{i}.sa_layer_norm",
    "mlp.up": "distilbert.transformer.layer.{i}.ffn.lin1",
    "mlp.down": "distilbert.transformer.layer.{i}.ffn.lin2",
    "mlp_norm": "distilbert.transformer.layer.{i}.output_layer_norm",
    "head.pooler": "pre_classifier",
    "head.transform": "vocab_transform",
    "head.norm": "vocab_layer_norm",
    "head": "vocab_projector",
}
_MODERNBERT: Final = {
    "embedding": "model.embeddings.tok_embeddings",
    "embedding_norm": "model.embeddings.norm",
    "final_norm": "model.final_norm",
    "attention_norm": "model.layers.{i}.attn_norm",
    "attention.Wqkv": "model.layers.{i}.attn.Wqkv",
    "attention.Wo": "model.layers.{i}.attn.Wo",
    "mlp_norm": "model.layers.{i}.mlp_norm",
    "mlp.Wi": "model.layers.{i}.mlp.Wi",
    "mlp.Wo": "model.layers.{i}.mlp.Wo",
    "head.transform": "head.dense",
    "head.norm": "head.norm",
    "head": "decoder",
}
_BERT_HEADS: Final = {
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
}
_ROBERTA_HEADS: Final = {
    "head.transform": "lm_head.dense",
    "head.norm": "lm_head.layer_norm",
    "head": "lm_head",
    "head.pooler": "classifier.dense",
}
_TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen3": _GATED,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "bert": _bert("bert") | _BERT_HEADS,
    "roberta": _bert("roberta") | _ROBERTA_HEADS,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
}


def parameters(shape: Shape) -> Iterator[tuple[str, Dims]]:
    """(name, shape) of each; matrices as (outputs, inputs), GPT-2's too."""
    if shape.is_encoder_decoder:
        yield from parameters_of_two_stacks(shape)
        return
    table = _TABLES[shape.family]
    for group in tensors(shape):
        template = _template(shape, group, table)
        first = 1 if "attn_norm" in template else 0  # ModernBERT's first layer has none
        for i in range(group.copies):
            yield template.replace("{i}", str(i + first)), group.dims


def _template(shape: Shape, group: TensorGroup, table: Mapping[str, str]) -> str:
    module, _, leaf = group.name.rpartition(".")
    if module == "head.classifier":
        return f"{_classifier(shape)}.{leaf}"
    if module == "head" and shape.head == "reward":
        return f"score.{leaf}"
    found = table.get(module)
    return f"{found}.{leaf}" if found else f"{table['']}{group.name}"


def _classifier(shape: Shape) -> str:
    if shape.head == "nsp":
        return "cls.seq_relationship"
    if shape.head == "spans" and shape.family != "modernbert":
        return "qa_outputs"
    if shape.head == "sequence" and shape.family == "roberta":
        return "classifier.out_proj"
    return "classifier"
