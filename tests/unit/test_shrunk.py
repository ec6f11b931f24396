"""Settings shrunk for a proof: a task of its own keeps its data, a model its family."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.verify.shrink import shrunk
from tests.helpers.configs import config
from tests.helpers.task_cases import CASES, TINY
from trainer.config import rules
from trainer.config.schema import Config
from trainer.errors import ConfigError
from trainer.planning import make_plan

OF_TEXT = ("data=jsonl", "data/tokenizer=pretrained")
OF_EXAMPLES = ("data=examples", "data.sources.examples.paths=[a.jsonl]")


def asked(name: str, *overrides: str) -> Config:
    case = CASES[name]
    data = (*OF_TEXT, "data.sources.files.paths=[a.jsonl]") if case.text else OF_EXAMPLES
    tail = ("data.tokenizer.path=tokenizer", "resources.ranks_per_node=1", *overrides)
    return config(*case.model, *data, *TINY, *case.overrides, *tail)


@pytest.mark.parametrize("name", CASES)
def test_every_task_is_proved_as_itself(name: str, tmp_path: Path) -> None:
    given = asked(name)
    small = shrunk(given, tmp_path, name="small", steps=4, fp32=True)
    assert small.task == given.task
    assert small.data == given.data.model_copy(update={"prefetch_steps": 0})
    assert small.model.kind == given.model.kind
    assert rules.problems(small) == []
    plan = make_plan(
        small,
        attempt=1,
        run_id="r",
        stores=(),
        device="cpu",
        cores=1,
        vocab_size_of_tokenizer=300,
    )
    assert 0 < plan.num_parameters < 100_000
    assert list(tmp_path.iterdir()) == []  # no corpus is made


def test_a_text_is_made_for_next_tokens(tmp_path: Path) -> None:
    small = shrunk(config(), tmp_path, name="small", steps=4, fp32=True)
    assert small.task.kind == "causal_lm"
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_the_encoder_of_a_folder_is_not_made_small(tmp_path: Path) -> None:
    shape = '{"model_type": "bert", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, '
    shape += '"num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}'
    (tmp_path / "config.json").write_text(shape)
    (tmp_path / "model.safetensors").touch()
    overrides = ("model=hf_folder", f"model.path={tmp_path}", "task=classify", *OF_EXAMPLES)
    given = config(*overrides, "data.tokenizer.path=tokenizer")
    with pytest.raises(ConfigError, match="bert's are not made from a folder") as caught:
        shrunk(given, tmp_path, name="small", steps=4, fp32=True)
    assert "model=encoder_debug" in str(caught.value)
