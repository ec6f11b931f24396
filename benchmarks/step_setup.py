"""What all arms of the step benchmarks share: shape, rows, starting values, peak."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from launch.compose import compose
from trainer.config.explain import validate
from trainer.data.store_writer import StoreWriter
from trainer.plan import RunPlan, StorePlan
from trainer.planning import make_plan
from trainer.records.token_store import MANIFEST, StoreManifest

_SEED = 20


@dataclass(frozen=True)
class Shape:
    """A Llama. `rows`: of one micro-batch."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    length: int
    rows: int

    @property
    def overrides(self) -> list[str]:
        return [
            "model=llama_debug",
            f"model.hidden_size={self.hidden}",
            f"model.intermediate_size={self.mlp}",
            f"model.num_hidden_layers={self.layers}",
            f"model.num_attention_heads={self.heads}",
            f"model.num_key_value_heads={self.kv_heads}",
            f"model.head_dim={self.hidden // self.heads}",
            f"model.vocab_size={self.vocab}",
            f"model.max_position_embeddings={self.length}",
            "model.tie_word_embeddings=false",
            f"data.sequence_length={self.length}",
            f"batch.micro_batch_size={self.rows}",
        ]


SHAPES = {
    # 40 M parameters, seconds a step: matrix products decide
    "base": Shape(512, 8, 8, 4, 1408, 16384, 512, 2),
    # a tenth of a second: a quick look
    "small": Shape(256, 4, 8, 4, 704, 8192, 256, 2),
    # milliseconds a step: what is not the model shows
    "tiny": Shape(64, 2, 4, 2, 176, 512, 64, 2),
}


def make_store(folder: Path, shape: Shape, *, rows: int, document_tokens: int) -> StorePlan:
    """Random tokens, `rows` rows of them. `document_tokens` 0: one document, so that no row has a
    boundary in it and every arm may use plain causal attention."""
    total = rows * shape.length + 1
    tokens = np.random.default_rng(_SEED).integers(1, shape.vocab, total, dtype=np.uint16)
    size = document_tokens or total
    lengths = np.diff(np.append(np.arange(0, total, size), total)).astype(np.int64)
    writer = StoreWriter(folder, key="benchmark", dtype=np.uint16, shard_tokens=total)
    writer.resume()
    writer.add("train", tokens=tokens, lengths=lengths)
    shards = writer.finish()
    writer.publish(
        StoreManifest(
            source="random",
            dtype="uint16",
            vocab_size=shape.vocab,
            end_of_text_id=0,
            tokenizer_digest="none",
            preparation_key="benchmark",
            code_version=1,
            source_bytes=total,
            skipped_documents=0,
            unigram_entropy_nats=float(np.log(shape.vocab)),
            shards=shards,
        )
    )
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return StorePlan(
        source="random",
        path=str(folder),
        weight=1.0,
        train_tokens=total,
        held_out_tokens=0,
        manifest_digest=digest,
    )


def plan_of(
    root: Path, shape: Shape, store: StorePlan, overrides: list[str], *, ranks: int
) -> RunPlan:
    """A real plan, made as `longhaul train` makes it."""
    settings = [
        *shape.overrides,
        "evals=none",
        "observers=quiet",
        "schedule=constant",
        "schedule.warmup_steps=0",
        "optimizer.learning_rate=0.0003",
        "steps.total=1000000",
        "steps.save_every=0",
        "steps.eval_every=0",
        "steps.log_every=1",
        "resources.device=cpu",
        "resources.threads_per_rank=1",
        f"resources.ranks_per_node={ranks}",
        f"run.root={root}",
        f"data.tokenizer.vocab_size={shape.vocab}",
        *overrides,
    ]
    return make_plan(
        validate(compose(settings).values),
        attempt=1,
        run_id="benchmark",
        stores=[store],
        device="cpu",
        cores=ranks,
        vocab_size_of_tokenizer=shape.vocab,
    )


def hf_model(shape: Shape, values: dict[str, torch.Tensor]) -> Any:
    """Hugging Face's own class with our starting values, fp32, sdpa."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.length,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(values)
    return model.train()


def gemm_peak(dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """The best FLOP/s of this process in a product of the model's size, by its CPU time."""
    x, w = torch.randn(2048, 512).to(dtype), torch.randn(1408, 512).to(dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        began = time.process_time()
        for _ in range(5):
            F.linear(x, w)
        best = min(best, time.process_time() - began)
    return 5 * 2 * 2048 * 512 * 1408 / best
