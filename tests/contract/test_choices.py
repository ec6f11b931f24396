"""Every choice of conf/ composes, is valid and can be planned."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launch.compose import compose
from launch.settings.choices import Folders
from trainer.config.explain import validate
from trainer.planning import make_plan

FOLDERS = Folders.find()
ENCODERS = ("bert_base", "distilbert_base", "encoder_debug", "modernbert_base", "roberta_base")
EXAMPLES = ["data=examples", "data.sources.examples.paths=[a.csv]", "data.tokenizer.path=tokenizer"]
ON_AN_ENCODER = ["model=encoder_debug", *EXAMPLES]
# What a choice cannot know by itself.
NEEDS = {
    **{f"model={name}": ["task=classify", *EXAMPLES] for name in ENCODERS},
    **{
        f"model={name}": ["task=seq2seq", *EXAMPLES]
        for name in ("encoder_decoder_debug", "t5_base", "t5_small")
    },
    "model=bart_base": ["task=seq2seq", *EXAMPLES, "data.packing=false"],
    "task=span_denoising": [
        "model=encoder_decoder_debug",
        "data/tokenizer=pretrained",
        "data.tokenizer.path=tokenizer",
    ],
    "task=classify": ON_AN_ENCODER,
    "task=tag": ON_AN_ENCODER,
    "task=relations": ON_AN_ENCODER,
    "task=masked_lm": [
        "model=encoder_debug",
        "data/tokenizer=pretrained",
        "data.tokenizer.path=tokenizer",
    ],
    "task=extract_qa": ON_AN_ENCODER,
    "task=masked_lm_nsp": [
        "model=encoder_debug",
        "data/tokenizer=pretrained",
        "data.tokenizer.path=tokenizer",
    ],
    "task=chat": EXAMPLES,
    "task=preference": EXAMPLES,
    "task=reward": EXAMPLES,
    "task=seq2seq": EXAMPLES,
    "data=examples": ["task=classify", *ON_AN_ENCODER],
    "model=hf_folder": ["data/tokenizer=pretrained", "data.tokenizer.path=tokenizer"],
    **{
        f"model/adapter={name}": ["data.packing=false"] for name in ("prompt", "p_tuning", "prefix")
    },
    "engine=plain": ["resources.ranks_per_node=1"],
    "engine=zero0": ["precision=fp32"],
    "engine=zero3_offload_nvme": ["engine.nvme_path=/local"],
    "precision=fp16": ["resources.device=cuda"],
    "task=custom": ["task.target=mine:Task", "run.trust=[mine]"],
    **{
        f"experiment={name}": ["data.sources.files.paths=[a.txt]", EXAMPLES[2]]
        for name in ("masked_lm_small", "masked_lm_nsp_small", "span_denoising_small")
    },
    "experiment=translation_t5": [
        "data.sources.examples.paths=[a.en]",
        "data.sources.examples.target_paths=[a.de]",
        "data.tokenizer.path=tokenizer",
    ],
    "data=custom": ["data.sources.custom.target=mine:Source", "run.trust=[mine]"],
    "data=datasets": ["data.sources.dataset.path=folder"],
    "data=mixture": ["data.sources.prose.paths=[a.txt]"],
    "data=text_files": ["data.sources.files.paths=[a.txt]"],
    "data=jsonl": ["data.sources.files.paths=[a.jsonl]"],
    "data=parquet": ["data.sources.files.paths=[a.parquet]"],
    "data/tokenizer=pretrained": ["data.tokenizer.path=tokenizer"],
    "experiment=llama_125m_8gpu": ["data.sources.files.paths=[a.jsonl]"],
}
# Recipes for the weights of a folder, and whose they are.
TUNED = {
    "experiment=chat_decoder": "llama",
    "experiment=preference_decoder": "llama",
    "experiment=classify_encoder": "bert",
    "experiment=qa_encoder": "bert",
    "experiment=relations_encoder": "bert",
    "experiment=reward_decoder": "llama",
    "experiment=seq2seq_decoder": "llama",
    "experiment=tag_encoder": "bert",
}
NEEDS |= dict.fromkeys(TUNED, EXAMPLES[1:])
REFUSED = {"model/adapter": ("qlora",)}  # and said so by name: tests/contract/test_adapters.py
# Together in one composition where they can be: Hydra needs a tenth of a second a time.
ALONE = (
    "cluster", "model", "engine", "experiment", "debug", "data", "data/tokenizer", "precision",
    "task",
)  # fmt: skip


def _rounds() -> list[list[str]]:
    """Every choice of conf/ in a few compositions."""
    together = {
        g: [name for name in FOLDERS.choices(g) if name not in REFUSED.get(g, ())]
        for g in FOLDERS.groups()
        if g not in ALONE
    }
    num_rounds = max(map(len, together.values()))
    rounds = [
        [f"{group}={names[i % len(names)]}" for group, names in together.items()]
        for i in range(num_rounds)
    ]
    return rounds + [[f"{group}={name}"] for group in ALONE for name in FOLDERS.choices(group)]


@pytest.mark.parametrize("choices", _rounds(), ids=" ".join)
def test_every_choice_composes_is_valid_and_plans(choices: list[str], tmp_path: Path) -> None:
    overrides = [*choices, *(need for choice in choices for need in NEEDS.get(choice, []))]
    family = TUNED.get(choices[0], "llama" if choices == ["model=hf_folder"] else None)
    if family is not None:
        made = _llama() | {"model_type": family, "max_position_embeddings": 2048}
        (tmp_path / "config.json").write_text(json.dumps(made))
        (tmp_path / "model.safetensors").touch()
        overrides.append(f"model.path={tmp_path}")
    config = validate(compose(overrides).values)
    start = time.process_time()
    plan = make_plan(
        config,
        attempt=1,
        run_id="r",
        stores=(),
        device="cuda" if config.resources.device == "cuda" else "cpu",
        cores=2,
        vocab_size_of_tokenizer=None,
    )
    assert time.process_time() - start < 5.0
    assert plan.num_parameters > 0


def _llama() -> dict[str, object]:
    return {
        "model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
