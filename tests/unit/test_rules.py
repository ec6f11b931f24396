"""Rules between sections: each message is triggered, and its override works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import config, values
from trainer.config.engine_rules import engine_problems
from trainer.config.explain import validate
from trainer.config.rules import num_micro_batches, world_size
from trainer.errors import ConfigError, Problem

# overrides -> where, part of the text, the override proposed ("" where it is not checked)
RULES: list[tuple[str, str, str, str]] = [
    ("data.sequence_length=4096", "data.sequence_length",
     "rows of 4,096 tokens, but the model has 2,048 positions", "data.sequence_length=2048"),
    ("engine=plain", "engine.kind", "the plain engine is one process, not 2 ranks",
     "engine=zero1, or resources.ranks_per_node=1"),
    ("engine=plain resources.ranks_per_node=1 precision=fp16", "precision.kind",
     "fp16 needs a loss scale", "precision=bf16"),
    ("engine=canonical precision=fp16", "precision.kind", "fp16 needs a loss scale",
     "precision=bf16"),
    ("engine=canonical resources.ranks_per_node=3 batch.global_batch_size=7"
     " batch.micro_batch_size=4", "engine.kind",
     "shares out the 2 micro-batches of a step (7 rows, 4 each), too few for 3 ranks",
     "resources.ranks_per_node=2"),
    ("engine=canonical resources.threads_per_rank=2", "resources.threads_per_rank",
     "products of matrices add up in another order on 2 threads", "resources.threads_per_rank=1"),
    ("engine=canonical optimizer=muon", "optimizer.kind", "Muon works on whole matrices",
     "optimizer=adamw"),
    ("engine=canonical precision.accumulate_in=weights", "precision.accumulate_in",
     "the canonical engine adds micro-batches up in fp32 only", "precision.accumulate_in=fp32"),
    ("engine=zero0", "engine.stage", "stage 0 with bf16 weights loses accuracy", "engine=zero1"),
    ("precision=fp16 resources.device=cpu", "precision.kind", "fp16 runs on GPUs only",
     "precision=bf16"),
    ("model.attention=flash_attention_2 resources.device=cpu", "model.attention",
     "flash_attention_2 runs on GPUs only", "model.attention=sdpa"),
    ("engine=zero0 precision=fp32 engine.offload_optimizer=cpu", "engine.offload_optimizer",
     "offloading needs sharded optimizer states", "engine=zero2 engine.offload_optimizer=cpu"),
    ("engine.offload_optimizer=nvme engine.nvme_path=/d", "engine.offload_optimizer",
     "nvme needs stage 3; stage 2 can offload to cpu", "engine.offload_optimizer=cpu"),
    ("engine.offload_parameters=cpu", "engine.offload_parameters",
     "only stage 3 can offload parameters, not stage 2", ""),
    ("engine=zero3_offload_nvme engine.nvme_path=null", "engine.nvme_path",
     "offloading to nvme needs a folder", "engine.nvme_path=/local/scratch"),
    ("optimizer=muon engine=zero3_offload_nvme engine.nvme_path=/d",
     "engine.offload_optimizer", "Muon does not run with its state on nvme",
     "engine.offload_optimizer=cpu"),
    ("schedule.warmup_tokens=4096", "schedule.warmup_tokens",
     "warm-up is given twice, here and by warmup_steps=10", "schedule.warmup_steps=0"),
    ("steps.total=9", "schedule.warmup_steps",
     "warm-up takes 10 steps and the whole run 9", "schedule.warmup_steps=1"),
    ("schedule.warmup_steps=0 schedule.warmup_tokens=99_999_999", "schedule.warmup_tokens",
     "warm-up takes 24,415 steps and the whole run 300", "schedule.warmup_tokens=122880"),
    ("schedule=wsd schedule.warmup_steps=200 schedule.decay_fraction=0.5",
     "schedule.decay_fraction", "are more than the run", "schedule.decay_fraction=0.33"),
    ("model.num_attention_heads=7 model.num_key_value_heads=7", "model.hidden_size",
     "256 is not a multiple of num_attention_heads (7)", ""),
    ("model.num_key_value_heads=3", "model.num_key_value_heads",
     "3 does not divide num_attention_heads (8)", "model.num_key_value_heads=8"),
    ("model=gpt2 model.num_key_value_heads=4", "model.num_key_value_heads",
     "gpt2 has as many key heads as query heads (12)", "model.num_key_value_heads=12"),
    ("model=pythia_160m model.head_dim=32", "model.head_dim",
     "heads are hidden_size / num_attention_heads wide: 64, not 32", "model.head_dim=64"),
    ("model.rope_theta=null", "model.rope_theta", "needs their base", "model.rope_theta=10000.0"),
    ("model.head_dim=31", "model.head_dim", "heads of an even width, not 31", "model.head_dim=32"),
    ("model.sliding_window=64", "model.sliding_window", "llama has no such setting",
     "model.sliding_window=null"),
    ("model=llama_1b model.rotary_fraction=0.5", "model.rotary_fraction",
     "llama has no such setting", "model.rotary_fraction=null"),
    ("batch.micro_batch_size=17", "batch.micro_batch_size",
     "17 rows at a time are more than the 16 of a whole step", "batch.micro_batch_size=8"),
    ("batch.micro_batch_size=16", "batch.micro_batch_size",
     "16 rows on each of 2 ranks are more than the 16 of a whole step", "batch.micro_batch_size=8"),
    ("batch.global_batch_size=1 resources.ranks_per_node=3", "batch.micro_batch_size",
     "8 rows at a time are more than the 1 of a whole step",
     "batch.micro_batch_size=1 resources.ranks_per_node=1"),
    ("resources.ranks_per_node=100000", "batch.micro_batch_size",
     "8 rows on each of 100,000 ranks are more than the 16 of a whole step",
     "batch.micro_batch_size=1 resources.ranks_per_node=16"),
    ("batch.global_batch_size=3 resources.nodes=4 resources.min_nodes=4", "batch.micro_batch_size",
     "8 rows at a time are more than the 3 of a whole step",
     "batch.micro_batch_size=1 resources.ranks_per_node=1 resources.nodes=3 resources.min_nodes=0"),
    ("engine=canonical batch.global_batch_size=1 resources.ranks_per_node=3",
     "batch.micro_batch_size", "8 rows at a time are more than the 1 of a whole step", ""),
    ("batch.global_batch_size=100000 steps.total=1000000000000", "steps.total",
     "1,000,000,000,000 steps of 100,000 rows are more tokens than 64 bits can count", ""),
    ("batch.global_batch_size=1000000000000 data.sequence_length=1000000000"
     " model.max_position_embeddings=1000000000 schedule.warmup_steps=0",
     "batch.global_batch_size", "rows of a step are more tokens than 64 bits can count", ""),
    ("model.vocab_size=4000", "data.tokenizer.vocab_size",
     "4,096 tokens, but the model's embedding has 4,000 entries", "model.vocab_size=0"),
    ("data.held_out_fraction=0", "data.held_out_fraction", "no text is held out", "evals=none"),
    ("data=custom data.sources.custom.target=mine.data:Source", "data.sources.custom.target",
     "would run code of the package mine, which is not trusted", "run.trust=[mine]"),
    ("task=custom task.target=mine:Task run.trust=[other]", "task.target",
     "would run code of the package mine", "run.trust=[other,mine]"),
    ("resume.allow=[optimizer.learning_rat]", "resume.allow",
     "optimizer.learning_rat is no setting; did you mean optimizer.learning_rate?",
     "resume.allow=[optimizer.learning_rate]"),
]  # fmt: skip


def problem_of(*overrides: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        validate(values(*overrides))
    [problem] = caught.value.problems
    return problem


@pytest.mark.parametrize(("overrides", "where", "text", "fix"), RULES, ids=[r[0] for r in RULES])
def test_what_cannot_work_is_refused_with_an_override_that_does(
    overrides: str, where: str, text: str, fix: str
) -> None:
    problem = problem_of(*overrides.split())
    assert problem.where == where
    assert text in problem.what
    if fix:
        assert fix in problem.fix
    proposed = problem.fix.rpartition(" or ")[2].split()
    validate(values(*overrides.split(), *proposed))


def test_a_new_tokenizer_for_trained_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(values("model=hf_folder", f"model.path={tmp_path}"))
    assert caught.value.problems[0].what == f"{tmp_path} is no model folder: it has no config.json"
    (tmp_path / "config.json").touch()
    problem = problem_of("model=hf_folder", f"model.path={tmp_path}")
    assert problem.where == "data.tokenizer"
    assert "the model's weights know another vocabulary" in problem.what
    assert problem.fix == f"data/tokenizer=pretrained data.tokenizer.path={tmp_path}"
    validate(values("model=hf_folder", f"model.path={tmp_path}", *problem.fix.split(" ", 1)))


def test_a_model_folder_that_is_not_there_is_said_before_its_tokenizer() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(values("model=hf_folder", "model.path=/nope"))
    assert [p.where for p in caught.value.problems] == ["model.path", "data.tokenizer"]
    assert caught.value.problems[0].what == "/nope is no model folder: it does not exist"


def test_two_rules_broken_are_two_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(values("engine=zero0", "steps.total=9"))
    assert {p.where for p in caught.value.problems} == {"engine.stage", "schedule.warmup_steps"}


@pytest.mark.parametrize("world", [1, 2, 3, 5, 16])
def test_any_world_that_can_share_the_batch_is_allowed(world: int) -> None:
    made = config(f"resources.ranks_per_node={world}", "batch.micro_batch_size=1")
    assert made.resources.ranks_per_node == world


@pytest.mark.parametrize("engine", ["zero2", "canonical"])
@pytest.mark.parametrize(("rows", "nodes", "ranks"), [(16, 1, 10), (7, 3, 1), (5, 2, 7), (1, 4, 4)])
def test_the_micro_batch_that_is_proposed_leaves_no_rank_without_rows(
    engine: str, rows: int, nodes: int, ranks: int
) -> None:
    overrides = [
        f"engine={engine}",
        f"batch.global_batch_size={rows}",
        f"batch.micro_batch_size={rows + 1}",
        f"resources.nodes={nodes}",
        f"resources.ranks_per_node={ranks}",
    ]
    made = config(*overrides, *problem_of(*overrides).fix.split())
    assert num_micro_batches(made) >= world_size(made)


def test_more_ranks_than_rows_pad() -> None:
    assert config("resources.ranks_per_node=20", "batch.micro_batch_size=1")


def test_a_device_that_is_found_later_is_judged_then() -> None:
    made = config("precision=fp16")
    assert not engine_problems(made, device=None)
    assert not engine_problems(made, device="cuda")
    [problem] = engine_problems(made, device="cpu")
    assert problem.where == "precision.kind"


@pytest.mark.parametrize(
    "name", ["start_s", "load_s", "first_step_s", "step_s", "save_s", "eval_s"]
)
def test_a_hang_must_be_named_before_the_collectives_give_up(name: str) -> None:
    problem = problem_of(f"watch.{name}=1799")
    assert problem.where == f"watch.{name}"
    assert "a hang is named after 1799 s and ended watch.grace_s (0 s) later" in problem.what
    assert "resources.collective_timeout_s (1800 s)" in problem.what
    assert problem.fix.startswith("resources.collective_timeout_s=3602")
    config(f"watch.{name}=1798")
    config(f"watch.{name}=1799", "watch.enabled=false")
