"""Runs of encoder-decoders to their end: losses of rows, what they answer, what is exported."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import task_cases
from trainer.batch import IGNORED, ExampleBatch
from trainer.build import build_job
from trainer.commands import evaluate, export
from trainer.commands.rows import held_out_rows
from trainer.data.encodings.seq2seq import EncoderDecoderEncoding, PromptedEncoding
from trainer.data.encodings.table import encoding_of
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone
from trainer.errors import DataError
from trainer.export.trained import load_model, open_trained
from trainer.job import wind_up
from trainer.loop import fit
from trainer.models.exported import load_pretrained
from trainer.models.heads import HeadSpec
from trainer.plan import RunPlan, write_plan
from trainer.records.decoder_start import decoder_start
from trainer.records.example_lookup import example_keys
from trainer.records.record import Record
from trainer.records.run_files import RunFiles
from trainer.tasks.targets import Targets

_PLAIN = (
    "engine=plain",
    "resources.ranks_per_node=1",
    "optimizer=adamw",
    "optimizer.learning_rate=0.01",
    "observers.tensorboard.enabled=false",
)
_BART = (
    "model=bart_base", "model.vocab_size=0", "model.hidden_size=32", "model.intermediate_size=48",
    "model.num_hidden_layers=2", "model.num_decoder_layers=2", "model.num_attention_heads=4",
    "model.head_dim=8", "model.dropout=0", "model.max_position_embeddings=64",
    "data.packing=false", "steps.total=3",
)  # fmt: skip
_UNTIED = ("model.tie_word_embeddings=false", "model.gated=true")
RUNS = {
    "t5": ("steps.total=60",),
    "t5 1.1": (*_UNTIED, "steps.total=3"),
    "bart": _BART,
}
SAID = {"Acme": "the engine", "Berlin": "a house"}


def _told_by_a_word(draw: random.Random, number: int) -> dict[str, Any]:
    first = draw.choice(list(SAID))
    return {"source": f"{first} {task_cases.words(draw, 4)} {number}", "target": SAID[first]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFiles]:
    """By name; rows of several pairs, but for BART."""
    folder = tmp_path_factory.mktemp("two-stacks")
    case = task_cases.Case(
        ("task=seq2seq", "task.prompt='{source}'", "task.target_tokens=12"),
        _told_by_a_word,
        task_cases.TWO_STACKS,
        task_cases.t5_folder,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(task_cases.CASES, "told", case)
        made = {}
        for name, more in RUNS.items():
            named = (*_PLAIN, f"run.name={name.replace(' ', '-')}", *more)
            made[name] = _trained(task_cases.case_plan(folder, "told", named, count=80), folder)
    return made


def _trained(plan: RunPlan, folder: Path) -> RunFiles:
    run = RunFiles(folder / "runs" / plan.config.run.name)
    run.attempt(1).root.mkdir(parents=True)
    write_plan(run.attempt(1).plan, plan)
    run.run_json.write_text("{}")
    job, state = build_job(plan, Alone(), run=run, stop=threading.Event(), startup=StartUp())
    assert fit(job, state) == "finished"
    wind_up(job, state.step)
    return run


@pytest.mark.parametrize("name", RUNS)
def test_an_export_is_transformers_own_and_says_the_same_of_every_row(
    name: str, runs: dict[str, RunFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = runs[name], tmp_path / "exported"
    assert export.main([str(run.root), "--to", str(folder)]) == 0, capsys.readouterr().err
    assert "logits equal the trained model's" in (folder / "README.md").read_text()
    theirs = load_pretrained(folder, dtype=torch.float32, head=HeadSpec("seq2seq"))
    assert (theirs.config.eos_token_id, theirs.generation_config.eos_token_id) == (1, 1)
    start = 2 if name == "bart" else 0
    assert theirs.generation_config.decoder_start_token_id == start
    own = theirs.lm_head.weight.data_ptr() != theirs.get_input_embeddings().weight.data_ptr()
    assert own is (name == "t5 1.1")
    trained = open_trained(run.root)
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    again = load_model(open_trained(folder), dtype=torch.float32, device=torch.device("cpu"))
    for batch in held_out_rows(trained.plan, 7):
        assert isinstance(batch, ExampleBatch)
        ours = Targets().loss_sum(model, batch).item()
        assert Targets().loss_sum(again, batch).item() == ours
        assert ours / batch.terms == pytest.approx(_their_mean(theirs, batch), abs=1e-6)


def _their_mean(theirs: Any, batch: ExampleBatch) -> float:
    """Each pair alone, as a user would give it, labels and all: what a decoder reads is theirs."""
    fields, total = batch.fields, 0.0
    for row, documents_T in enumerate(fields["documents_RT"]):
        for number in range(1, int(documents_T.max()) + 1):
            labels = fields["labels_RS"][row][fields["decoder_documents_RS"][row] == number]
            source = fields["inputs_RT"][row][documents_T == number]
            loss = theirs(input_ids=source[None], labels=labels[None]).loss
            total += loss.double().item() * int((labels != IGNORED).sum())
    return total / batch.terms


def test_smoothing_is_that_of_torch_and_scores_are_without(runs: dict[str, RunFiles]) -> None:
    trained = open_trained(runs["t5"].root)
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    batch: Any = held_out_rows(trained.plan, 5)[0]
    labels, embedding = batch.fields["labels_RS"], model.get_parameter("shared.weight")
    for smoothing, chunk in ((0.0, 0), (0.1, 0), (0.1, 5)):
        model.hf.lm_head.chunk_tokens = chunk
        logits = model(batch.fields, want="logits")
        vocabulary = logits.shape[-1]
        expected = torch.nn.functional.cross_entropy(
            logits.view(-1, vocabulary), labels.view(-1), reduction="sum", label_smoothing=smoothing
        )
        task = Targets(label_smoothing=smoothing)
        found = task.loss_sum(model, batch)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        ours, theirs = (torch.autograd.grad(loss, embedding)[0] for loss in (found, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        plain = Targets().loss_sum(model, batch).item()
        assert task.score(model, batch)["loss"] == pytest.approx(plain, rel=1e-6)


def test_held_out_sources_are_answered_as_transformers_would(
    runs: dict[str, RunFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, written = runs["t5"], tmp_path / "said.jsonl"
    argv = [str(run.root), "--answers", "9", "--scores", "exact_match,bleu", "--json"]
    assert evaluate.main([*argv, "--write", str(written)]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    right = [row["answer"] == row["references"][0] for row in rows]
    assert result["exact_match"] == sum(right) / 9
    assert sum(right) >= 7, rows  # it has learnt the task: chance is a half
    trained = open_trained(run.root)
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = TaskTokenizer.open(Path(trained.plan.stores[0].path))
    for row in rows:
        assert row["prompt"].endswith("</s>")
        ids = torch.tensor([tokenizer.encode(row["prompt"].removesuffix("</s>")).ids])
        alone = model.hf.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=1)
        said = [t for t in alone[0, 1:].tolist() if t > 1]
        assert tokenizer.decode(said).strip() == row["answer"]


@pytest.mark.parametrize("name", ["source", "target"])
def test_a_pair_with_an_empty_text_is_refused(name: str, runs: dict[str, RunFiles]) -> None:
    plan = open_trained(runs["t5"].root).plan
    tokenizer = TaskTokenizer.open(Path(plan.stores[0].path))
    encoding = encoding_of(plan.config, tokenizer, labels=())
    assert isinstance(encoding, EncoderDecoderEncoding)
    prompted = PromptedEncoding(plan.config.task, tokenizer, row_tokens=48)  # type: ignore[arg-type]
    record = Record({"source": "the house", "target": "das Haus"} | {name: " "}, "a.tsv", 7)
    for one in (encoding, prompted):
        with pytest.raises(DataError, match=f"a.tsv row 7: its {name} is empty; leave the row out"):
            one.encode(record)


def test_what_a_decoder_begins_with_is_part_of_a_stores_key(runs: dict[str, RunFiles]) -> None:
    config = open_trained(runs["t5"].root).plan.config
    data, task = config.data.model_dump(mode="json"), config.task.model_dump(mode="json")
    start = decoder_start(config.model.model_dump(mode="json"))
    assert start == 0
    stores = [example_keys(data, task, decoder_start=s).stores for s in (None, start, 2)]
    assert len({store["examples"] for store in stores}) == 3


@pytest.mark.parametrize(
    ("said", "start"),
    [
        ({"model_type": "t5", "pad_token_id": 0, "decoder_start_token_id": 3}, 3),
        ({"model_type": "t5", "pad_token_id": 5}, 5),
        ({"model_type": "bart"}, 2),
        ({"model_type": "llama", "pad_token_id": 0}, None),
        ([], None),
    ],
)
def test_a_folder_says_what_a_decoder_begins_with(
    said: object, start: int | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert decoder_start({"kind": "folder", "path": str(tmp_path)}) == start
