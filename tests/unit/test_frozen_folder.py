"""A folder that frozen parameters come from stays what it was, or the run does not go on."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.configs import config
from trainer.build import _frozen_folder
from trainer.config.sections.model import FolderModel
from trainer.errors import Exit, ModelError
from trainer.records.frozen_folder import hold_on_to


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"12345678")
    (made / "README.md").write_text("anything")
    return made


def test_a_folder_that_stays_is_accepted_even_when_it_was_copied(
    folder: Path, tmp_path: Path
) -> None:
    record = tmp_path / "frozen.json"
    hold_on_to(folder, record)
    hold_on_to(folder, record)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    (folder / "README.md").write_text("something else")
    hold_on_to(folder, record)


def test_a_changed_folder_is_refused_by_the_files_name(folder: Path, tmp_path: Path) -> None:
    record, weights = tmp_path / "frozen.json", folder / "model.safetensors"
    hold_on_to(folder, record)
    weights.write_bytes(b"12345679")  # as long as before
    os.utime(weights, ns=(1, 1))
    with pytest.raises(ModelError, match=r"model\.safetensors is another file; put the old") as e:
        hold_on_to(folder, record)
    assert e.value.exit_code == Exit.STOP
    assert "\n" not in str(e.value)
    weights.write_bytes(b"12345678")
    hold_on_to(folder, record)
    (folder / "adapter_model.safetensors").write_bytes(b"1")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors was not there"):
        hold_on_to(folder, record)
    (folder / "adapter_model.safetensors").unlink()
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is gone"):
        hold_on_to(folder, record)


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (("task=preference",), True),  # dpo: the reference comes from there at every start
        (("task=preference", "task.loss=orpo"), False),
        (("task=chat", "regularize.mixout=0.5"), True),
        (("task=chat", "model/adapter=lora"), True),
        (("task=chat",), False),
    ],
)
def test_a_folder_that_is_needed_again_is_held_on_to(given: tuple[str, ...], held: bool) -> None:
    settings = config(
        "data=examples", "data.sources.examples.paths=[a.jsonl]", "data.tokenizer.path=t", *given
    )
    section = FolderModel(
        kind="folder", path="base", weights="pretrained", vocab_size=0, attention="sdpa",
        activation_checkpointing=False, compile=False, loss_chunk_tokens=0,
        adapter=settings.model.adapter,
    )  # fmt: skip
    settings = settings.model_copy(update={"model": section})
    plan: Any = SimpleNamespace(config=settings)
    assert _frozen_folder(plan) == (Path("base") if held else None)
