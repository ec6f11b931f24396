"""What cannot become a run is refused by the command itself, before the first byte is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.stand import Standing, plan_of
from tests.helpers.configs import config
from tests.helpers.stores import make_store
from trainer.errors import ConfigError, Exit
from trainer.plan import StorePlan

LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is typed: a model folder `m`, tokenizers in both forms, nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in ("m", "new", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(LLAMA))
    vocab = {f"t{i}": i for i in range(5000)}
    (tmp_path / "new" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "old" / "merges.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [
        ([], "4,096"),
        (["data/tokenizer=pretrained", "data.tokenizer.path=new"], "5,000"),
        (["data/tokenizer=pretrained", "data.tokenizer.path=new/tokenizer.json"], "5,000"),
        (["data/tokenizer=pretrained", "data.tokenizer.path=old"], "5,000"),
    ],
    ids=["to be trained", "folder", "file", "older form"],
)
def test_a_vocabulary_that_a_folder_model_cannot_hold_is_refused_before_the_data_is_touched(
    place: Path, tokenizer: list[str], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    typed = ["train", "model=hf_folder", "model.path=m", "model.weights=fresh", *tokenizer]
    assert main(typed) == Exit.REFUSED
    said = capsys.readouterr().err
    assert f"tokenizer has {size} tokens, but the model's embedding has 300 entries" in said
    assert sorted(place.rglob("*")) == before


def test_a_vocabulary_that_is_known_only_from_the_store_is_refused_then(place: Path) -> None:
    """60,000 entries in the store; what the tokenizer's own file says cannot be read."""
    made = config(
        "model=hf_folder", "model.path=m", "model.weights=fresh",
        "data/tokenizer=pretrained", "data.tokenizer.path=elsewhere",
    )  # fmt: skip
    plan_of(Standing(made, None, None), attempt=1, run_id="")
    make_store(place / "store", [[1, 2, 3]])
    store = StorePlan(
        source="stdlib", path=str(place / "store"), weight=1.0, train_tokens=10_000,
        held_out_tokens=0, manifest_digest="",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"has 60,000 tokens, but the model's embedding has 300"):
        plan_of(Standing(made, None, (store,)), attempt=1, run_id="")


def test_a_missing_model_folder_is_said_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "model=hf_folder", "model.path=/nope"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "1. model.path: /nope is no model folder: it does not exist" in said
    assert "2. data.tokenizer: a new tokenizer, but the model's weights know another" in said


def test_a_folder_that_cannot_be_trained_is_said_with_all_else_and_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights in a pickle; then a family that is not known, and a wrong setting as well."""
    (place / "m" / "pytorch_model.bin").touch()
    typed = ["model=hf_folder", "model.path=m"]
    for verb in ("plan", "train"):
        assert main([verb, *typed]) == Exit.REFUSED
        said = capsys.readouterr().err
        assert said.startswith("2 problems in the configuration\n")
        assert "1. model.path: m has its weights only as pickle (pytorch_model.bin)" in said
        assert "2. data.tokenizer: a new tokenizer, but the model's weights know another" in said
    (place / "m" / "config.json").write_text(json.dumps(LLAMA | {"model_type": "mamba"}))
    assert main(["plan", *typed, "steps.total=0"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "1. model.path: m is of the family mamba, which is not known here" in said
    assert "2. steps.total: must be at least 1, not 0" in said


def test_what_is_no_regular_file_is_no_corpus(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["train", "data=text_files", "data.sources.files.paths=[/dev/zero]", "--dry-run"]
    assert main(typed) == Exit.REFUSED
    assert "/dev/zero is no regular file; correct the paths of this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["launch=slurm"], "--no-start: launch=slurm starts its ranks itself"),
        (["-m", "run.seed=1,2"], "--no-start writes one attempt down; it cannot be with --multi"),
    ],
)
def test_what_others_start_is_written_down_for_ranks_of_this_machine_only(
    place: Path, typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(place.rglob("*"))
    try:
        code = main(["train", "--no-start", *typed])
    except SystemExit as e:  # argparse's own
        code = int(str(e.code))
    assert code == Exit.REFUSED
    assert said in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
