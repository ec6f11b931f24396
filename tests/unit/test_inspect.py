"""People see the row that the model sees, and counts that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.corpora import silent, tiny_config
from tests.helpers.data import tiny_text_corpus
from trainer.batch import IGNORED
from trainer.commands import data_audit, data_show
from trainer.config.schema import Config
from trainer.data.inspect import whole_stream
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore


@pytest.fixture(params=[True, False], ids=["packed", "pieces"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    corpus = tiny_text_corpus(tmp_path, documents=60)
    with corpus.open("a", encoding="utf-8") as file:
        file.write('{"text": "twice"}\n{"text": "twice"}\n')
    held_out = {"held_out_fraction": 0.0}
    return tiny_config(
        corpus, tmp_path / "s", sequence_length=16, packing=request.param, **held_out
    )


def _file(made: Config, tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(made.model_dump_json(), encoding="utf-8")
    return str(path)


def test_show_prints_what_the_stream_yields_with_true_document_numbers(
    made: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = prepare(made, log=silent)
    split = TokenStore.open(Path(stores[0].path)).train
    batch = made.batch.global_batch_size
    for sample in (0, 1, batch + 2):
        where = ["--step", str(sample // batch + 1), "--row", str(sample % batch)]
        assert data_show.main([_file(made, tmp_path), "--json", *where]) == 0
        shown = json.loads(capsys.readouterr().out)
        row = whole_stream(made, stores).step(sample // batch + 1)[sample % batch]
        assert [t["id"] for t in shown["tokens"]] == row.inputs_RT[0].tolist()
        assert [t["position"] for t in shown["tokens"]] == row.positions_RT[0].tolist()
        labels = [IGNORED if t["label"] is None else t["label"] for t in shown["tokens"]]
        assert labels == row.labels_RT[0].tolist()
        for t in shown["tokens"]:
            if t["label"] is not None:  # not padding
                assert t["id"] in split.document_tokens(t["document"])
    assert data_show.main([_file(made, tmp_path), "--sample", "3"]) == 0
    assert capsys.readouterr().out.startswith("sample 3: row ")


def test_audit_counts_documents_duplicates_and_what_steps_consume(
    made: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--first-step", "2", "--last-step", "4"]
    assert data_audit.main([_file(made, tmp_path), "--json", *steps]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["tiny"]["train"]["documents"] == 62
    assert found["sources"]["tiny"]["duplicates"] >= 1
    batch = made.batch.global_batch_size
    assert found["steps"]["samples"] == [batch, 4 * batch]
    assert found["steps"]["sources"]["tiny"]["rows"] == 3 * batch
    assert data_audit.main([_file(made, tmp_path), *steps]) == 0
    assert "steps 2 to 4 consume" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--sample", "-1"], ["--step", "0"], ["--row", "100000"]])
def test_rows_that_do_not_exist_are_usage_errors(
    made: Config, tmp_path: Path, option: list[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        data_show.main([_file(made, tmp_path), *option])
    assert e.value.code == 2
