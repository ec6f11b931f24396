"""Config -> RunPlan: batch arithmetic for any world, and what `longhaul plan` prints."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.backends.local import LocalBackend
from launch.plan_command import as_text, run
from tests.helpers.configs import config
from trainer.config.schema import Config
from trainer.errors import ConfigError, Exit, Problem, Refused
from trainer.plan import RunPlan, StorePlan, read_plan, write_plan
from trainer.planning import make_plan, micro_steps, threads_per_rank

DEFAULT = config()


def plan(
    made: Config,
    *,
    vocab: int | None = None,
    device: Any = "cpu",
    stores: Sequence[StorePlan] = (),
) -> RunPlan:
    return make_plan(
        made,
        attempt=1,
        run_id="r",
        stores=stores,
        device=device,
        cores=8,
        vocab_size_of_tokenizer=vocab,
    )


def problems(made: Config, *, vocab: int | None = None) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        plan(made, vocab=vocab)
    return list(caught.value.problems)


@pytest.mark.parametrize("total", [1, 5, 16, 17, 96])
@pytest.mark.parametrize("world", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_every_row_is_in_exactly_one_micro_step(total: int, world: int, micro: int) -> None:
    rows = {"global_batch_size": total, "micro_batch_size": micro}
    made = DEFAULT.model_copy(update={"batch": DEFAULT.batch.model_copy(update=rows)})
    steps, padding = micro_steps(made, world)
    assert steps * micro * world - padding == total
    assert 0 <= padding < micro * world


def test_the_numbers_of_the_default_run() -> None:
    made = plan(config())
    assert (made.world_size, made.gradient_accumulation_steps, made.padding_rows) == (2, 1, 0)
    assert made.tokens_per_step == 16 * 256
    assert made.vocab_size == 4096
    assert made.num_parameters == 4_000_000
    assert made.checkpoint_bytes == 12 * 4_000_000
    assert made.threads_per_rank == 4
    assert made.memory_per_rank.staging == 2 * made.checkpoint_bytes // made.world_size
    beside = ("host", "staging", "kept")
    assert made.memory_per_rank.kept == 0
    assert made.memory_per_rank.total == sum(
        v for k, v in made.memory_per_rank.model_dump().items() if k not in beside
    )


def test_what_is_frozen_has_no_gradient_moment_or_place_in_a_checkpoint() -> None:
    whole, lora = plan(config()), plan(config("model/adapter=lora"))
    # Beside each matrix (outputs, inputs) of a layer lie 8 x (outputs + inputs).
    width, layers = 256, 4
    model = config().model.model_dump()
    assert (model["hidden_size"], model["num_hidden_layers"]) == (width, layers)
    inner = model["intermediate_size"]
    keys = model["num_key_value_heads"] * model["head_dim"]
    sums = 2 * (2 * width) + 2 * (width + keys) + 3 * (width + inner)
    assert lora.num_trained == layers * 8 * sums
    assert (whole.num_trained, whole.num_parameters) == (4_000_000, 4_000_000)
    assert lora.num_parameters == whole.num_parameters
    assert lora.checkpoint_bytes == 12 * lora.num_trained
    mine, theirs = lora.memory_per_rank, whole.memory_per_rank
    assert mine.gradients < theirs.gradients / 10
    assert mine.optimizer < theirs.optimizer / 10
    assert mine.parameters == theirs.parameters + 2 * lora.num_trained  # bf16, beside the model
    assert "trained (" in run_text("model/adapter=lora")
    assert "trained (" not in run_text()


def run_text(*overrides: str) -> str:
    return as_text(plan(config(*overrides)), ())


def test_a_pattern_that_matches_nothing_is_refused_before_anything_starts() -> None:
    [problem] = problems(config("model/adapter=lora", "model.adapter.targets=[qproj]"))
    assert problem.where == "model.adapter.targets"
    assert problem.what.startswith("'qproj' matches nothing; there is mlp.down_proj, mlp.gate_proj")
    [frozen] = problems(config("model/adapter=freeze", "model.adapter.frozen=[encoder.*]"))
    assert frozen.what.startswith("'encoder.*' matches nothing; there is model.embed_tokens.weight")
    [head] = problems(config("model/adapter=ia3", "model.adapter.modules_to_save=[classifier]"))
    assert "'classifier' matches nothing; there is model.embed_tokens, model.norm" in head.what


def test_virtual_tokens_take_positions() -> None:
    asked = ("model/adapter=prompt", "data.packing=false", "data.sequence_length=2040")
    assert plan(config(*asked[:2])).num_trained == 20 * 256
    [problem] = problems(config(*asked, "model.max_position_embeddings=2048"))
    assert "20 before rows of 2,040 are more than its 2,048 positions" in problem.what
    assert problem.fix == "data.sequence_length=2028"


def test_states_in_memory_are_counted_twice_and_the_neighbours_too() -> None:
    one = plan(config("checkpoint.peer.every=auto"))
    both = ("resources.nodes=2", "batch.micro_batch_size=4")
    two = plan(config("checkpoint.peer.every=5", *both))
    assert one.memory_per_rank.kept == 2 * one.checkpoint_bytes // one.world_size
    assert two.memory_per_rank.kept == 4 * two.checkpoint_bytes // two.world_size
    assert two.memory_per_rank.total == plan(config(*both)).memory_per_rank.total


def test_threads_are_the_cores_divided_unless_given() -> None:
    three = config("resources.ranks_per_node=3", "batch.micro_batch_size=4")
    assert threads_per_rank(three, 8, device="cpu") == 2
    assert threads_per_rank(three, 2, device="cpu") == 1
    assert threads_per_rank(config("resources.threads_per_rank=5"), 2, device="cpu") == 5


def test_the_vocabulary_is_the_tokenizers_rounded_up() -> None:
    assert plan(config(), vocab=4097).vocab_size == 4160
    assert plan(config("model.vocab_size=5000"), vocab=4097).vocab_size == 5000


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    [problem] = problems(config("model=gpt2"), vocab=60_000)
    what = "the tokenizer has 60,000 tokens, but the model's embedding has 50,257 entries"
    assert problem == Problem("model.vocab_size", what, "model.vocab_size=0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {
        "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_a_folder_model_is_planned_from_its_config(folder: Path) -> None:
    made = config("model=hf_folder", f"model.path={folder}", "model.weights=fresh",
                  "data.sequence_length=64")  # fmt: skip
    assert plan(made, vocab=100).vocab_size == 128


def test_a_folder_model_that_does_not_fit_says_all_that_is_wrong(folder: Path) -> None:
    made = config("model=hf_folder", f"model.path={folder}", "model.weights=fresh")
    found = problems(made, vocab=200)
    assert [p.where for p in found] == ["data.tokenizer", "data.sequence_length"]
    assert found[0].fix == f"data/tokenizer=pretrained data.tokenizer.path={folder}"
    assert found[1].fix == "data.sequence_length=64"


def test_a_tokenizer_to_be_trained_is_told_the_size_that_fits(folder: Path) -> None:
    shape = json.loads((folder / "config.json").read_text()) | {"vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(shape))
    fresh = ("model=hf_folder", f"model.path={folder}", "model.weights=fresh")
    [problem] = problems(config(*fresh, "data.sequence_length=64"), vocab=None)
    assert problem.what.startswith("the tokenizer has 4,096 tokens")
    assert problem.fix == "data.tokenizer.vocab_size=1000"
    assert plan(config(*fresh, "data.sequence_length=64", problem.fix), vocab=None)


def test_a_folder_that_is_no_model_is_a_problem_of_its_setting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = config("model=hf_folder", f"model.path={tmp_path}", "model.weights=fresh")
    [problem] = problems(made)
    assert problem.where == "model.path"
    assert "is no model folder" in problem.what


def test_fp16_is_refused_where_the_device_turns_out_to_be_a_cpu() -> None:
    [problem] = problems(config("precision=fp16"))
    assert problem.where == "precision.kind"
    assert plan(config("precision=fp16"), device="cuda")


def test_two_machines_can_be_planned_but_not_started_on_this_one() -> None:
    made = plan(config("resources.nodes=2", "batch.micro_batch_size=4"))
    assert made.world_size == 4
    with pytest.raises(ConfigError, match="2 machines, but launch=local starts ranks on this one"):
        LocalBackend().preflight(made)


def test_a_plan_survives_json(tmp_path: Path) -> None:
    made = plan(config("task=custom", "task.target=m:T", "run.trust=[m]"))
    write_plan(tmp_path / "plan.json", made)
    assert read_plan(tmp_path / "plan.json") == made


def test_the_70b_preset_is_planned_at_once_and_allocates_nothing() -> None:
    made = config(
        "model=llama3_70b", "engine=zero3", "resources.ranks_per_node=512",
        "batch.global_batch_size=2048", "batch.micro_batch_size=1", "data.sequence_length=8192",
    )  # fmt: skip
    tracemalloc.start()
    start = time.process_time()
    result = plan(made)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.num_parameters == 70_553_706_496
    assert seconds < 5.0  # 0.2 s on a quiet core
    assert peak < 10 * 2**20


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_world_batch_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where no token store tells the vocabulary
    assert run(["resources.ranks_per_node=3", "batch.micro_batch_size=4"]) == 0
    text = capsys.readouterr().out
    assert "16 rows = 4 rows x 3 ranks x 2 micro-steps - 8 rows of weight zero" in text
    assert "4,000,000 parameters" in text
    assert "activation checkpointing off" in text


def test_the_command_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    run([], json=True)
    values = json.loads(capsys.readouterr().out)
    assert values["world_size"] == 2
    assert values["memory_per_rank"]["total"] > 0


def test_the_command_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    run(["steps.total=50"], why="steps.total")
    assert capsys.readouterr().out == "steps.total = 50\n    command line: steps.total=50\n"


def test_the_command_finds_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    run(["model=llama3_8b", "resources.ranks_per_node=8", "batch.micro_batch_size=2"], fit="80GB")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("add to the command line: engine=zero")


@pytest.mark.parametrize("memory", ["lots", "80"])  # 80 bytes are meant by nobody
def test_a_fit_into_no_memory_size_is_refused(memory: str) -> None:
    with pytest.raises(Refused, match=rf"--fit {memory}: give a memory size, as in --fit 80GB"):
        run([], fit=memory)


def test_a_corpus_too_small_for_a_row_is_refused_with_a_length_that_works() -> None:
    store = StorePlan(
        source="mine",
        path="/stores/mine",
        weight=1.0,
        train_tokens=200,
        held_out_tokens=0,
        manifest_digest="",
    )
    with pytest.raises(ConfigError, match=r"(?s)has 200 tokens to train on.*sequence_length=199"):
        plan(config("data.sequence_length=256"), stores=[store])


def test_fit_needs_no_micro_batch_that_is_valid_before(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model=llama3_8b", "resources.ranks_per_node=8"]
    assert run(overrides, fit="80GB", json=True) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["fit"]
