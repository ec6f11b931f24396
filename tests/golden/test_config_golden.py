"""The resolved default, every preset's plan in one table, and whole plans, as text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.plan_command import as_text as plan_text
from launch.settings.choices import Folders
from launch.settings.show_config import text
from tests.helpers.configs import config
from trainer.config.schema import Config
from trainer.plan import RunPlan
from trainer.planning import make_plan

Golden = Callable[[str, str], None]


def plan(made: Config) -> RunPlan:
    return make_plan(
        made,
        attempt=1,
        run_id="r",
        stores=(),
        device="cpu",
        cores=2,
        vocab_size_of_tokenizer=None,
    )


def test_the_resolved_default(golden: Golden) -> None:
    golden("config_default.yaml", text([]))


@pytest.mark.parametrize("name", ["zero3_offload_nvme", "plain", "canonical"])
def test_a_resolved_engine(name: str, golden: Golden) -> None:
    needs = ["engine.nvme_path=/local/scratch"] if "nvme" in name else []
    golden(f"config_{name}.yaml", text([f"engine={name}", *needs]))


PLANS = {
    "default": [],
    "three_ranks": ["resources.ranks_per_node=3", "batch.micro_batch_size=4"],
    "70b": [
        "model=llama3_70b", "engine=zero3", "resources.ranks_per_node=512",
        "batch.global_batch_size=2048", "batch.micro_batch_size=1", "data.sequence_length=8192",
    ],
    "8b_offload": [
        "model=llama3_8b", "engine=zero3_offload_cpu", "batch.micro_batch_size=1",
        "data.sequence_length=8192",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_as_printed(name: str, golden: Golden) -> None:
    golden(f"plan_{name}.txt", plan_text(plan(config(*PLANS[name])), ()) + "\n")


ENCODERS = ("bert_base", "distilbert_base", "encoder_debug", "modernbert_base", "roberta_base")
CLASSIFY = [
    "task=classify", "data=examples", "data.sources.examples.paths=[a.csv]",
    "data.tokenizer.path=tokenizer", "data.labels=[good,bad]",
]  # fmt: skip


# BART's rows are not packed.
TWO_STACKS = {
    "bart_base": ["data.packing=false"],
    "encoder_decoder_debug": [],
    "t5_base": [],
    "t5_small": [],
}


def _needs(name: str) -> list[str]:
    if name in ENCODERS:
        return CLASSIFY
    return ["task=seq2seq", *CLASSIFY[1:-1], *TWO_STACKS[name]] if name in TWO_STACKS else []


def test_the_size_of_every_model(golden: Golden) -> None:
    lines = [f"{'model':<22}{'parameters':>16}{'MFLOP a token':>16}{'checkpoint GB':>16}"]
    for name in Folders.find().choices("model"):
        if name == "hf_folder":
            continue
        made = plan(config(f"model={name}", *_needs(name)))
        flops, size = made.flops_per_token / 1e6, made.checkpoint_bytes / 1e9
        lines.append(f"{name:<22}{made.num_parameters:>16,}{flops:>16,.1f}{size:>16.2f}")
    golden("models.txt", "\n".join(lines) + "\n")
