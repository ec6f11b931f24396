"""The model that is broken: two layers, two ranks, ZeRO-2, thirty steps of some tens of ms.

Written as an experiment of the user's own, so that every run of the bench is a command that a
person could type: longhaul train --config-dir FOLDER/conf +experiment=drill run.name=...
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS = 30
SAVE_EVERY = 5
BATCH = 6  # rows of a step: divides by 1, 2 and 3 ranks
NAME = "drill"
_ROW_TOKENS = 64
_TEXT = (
    "the a night train long road carries quiet heavy wheels over old bridge and river under hill "
    "where no lamp burns late but one small window keeps its light for those who still go on"
)
_WORDS = _TEXT.split()


def write_experiment(folder: Path) -> Path:
    """The corpus and `conf/experiment/drill.yaml` in `folder`; the folder for --config-dir."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(_paragraph(n) for n in range(600)) + "\n", encoding="utf-8")
    conf = folder / "conf"
    (conf / "experiment").mkdir(parents=True, exist_ok=True)
    choices = {
        "data": "text_files",
        "observers": "quiet",
        "evals": "none",
        "precision": "fp32",
        "task": "custom",
    }
    lines = ["# @package _global_", "defaults:"]
    lines += [f"  - override /{group}: {choice}" for group, choice in choices.items()]
    lines += ["  - _self_", ""]
    for section, values in _settings(folder, corpus).items():
        lines.append(f"{section}: {json.dumps(values)}")  # JSON is YAML
    path = conf / "experiment" / f"{NAME}.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return conf


def _settings(folder: Path, corpus: Path) -> dict[str, dict[str, Any]]:
    return {
        "run": {"root": str(folder / "runs"), "trust": ["trainer"]},
        "resources": {"device": "cpu", "threads_per_rank": 1},
        "steps": {"total": STEPS, "save_every": SAVE_EVERY, "eval_every": 0, "log_every": 1},
        "batch": {"global_batch_size": BATCH, "micro_batch_size": 1},
        "model": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2 * _ROW_TOKENS,
            "dropout": 0.1,  # so that randomness that is not restored shows
        },
        "task": {
            "target": "trainer.verify.recorded:Recorded",
            "settings": {"folder": str(folder / "samples")},
        },
        "data": {
            "sequence_length": _ROW_TOKENS,
            "store_root": str(folder / "stores"),
            "held_out_fraction": 0.0,
            "shard_tokens": 8192,  # several files
            "num_workers": 1,
            "tokenizer": {"vocab_size": 300, "sample_bytes": 20_000},
            "sources": {
                "files": {"kind": "files", "paths": [str(corpus)], "document": "paragraph"}
            },
        },
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_steps": 4, "warmup_tokens": 0},
        "observers": {"peak_tflops": 1.0},  # not measured at every start
        "launch": {"grace_s": 20},
        "drills": {"enabled": True},
    }


def _paragraph(number: int) -> str:
    """1 to 60 words: rows are packed and cut, and no two steps have as many terms."""
    length = 1 + number * number * 7 % 60
    words = (_WORDS[(number * 5 + i * (3 + number % 7)) % len(_WORDS)] for i in range(length))
    return " ".join(words) + "."
