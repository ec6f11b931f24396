"""From a checkpoint to something useful: each use is held against the trained model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from launch.ending import say_finished
from tests.helpers.trained_run import trained_run
from trainer.commands import evaluate, export, generate
from trainer.commands.rows import held_out_rows, rows_to_compare
from trainer.data.tokenizer import TextTokenizer
from trainer.engine.base import FragmentSource
from trainer.errors import Exit
from trainer.export.export import ExportMismatch, export_folder
from trainer.export.generate import Sampling, continued
from trainer.export.safetensors_folder import INDEX
from trainer.export.trained import Trained, load_model, open_trained
from trainer.models.exported import load_pretrained
from trainer.records.fragment import Fragment
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles

_CPU = torch.device("cpu")
_STEPS = 6


@dataclass
class Doubled:
    """A planted fault: one tensor comes out twice as large, but only while it is exported."""

    source: FragmentSource
    name: str
    armed: bool = True

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        self.source.read(fragment, out)
        if self.armed and fragment.name == self.name:
            out.mul_(2)
            self.armed = False


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return trained_run(tmp_path_factory.mktemp("use"))


@pytest.fixture
def trained(run: RunFiles) -> Iterator[Trained]:
    found = open_trained(run.root)
    yield found
    found.close()


def tokenizer_of(trained: Trained) -> TextTokenizer:
    return TextTokenizer.open(Path(trained.plan.stores[0].path))


def test_export_is_loaded_by_transformers_with_equal_logits(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert export.main([str(run.root), "--to", str(folder), "--max-shard", "0.02MB", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == _STEPS
    assert said["files"] > 1
    assert said["max_logit_difference"] <= 1e-6
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", INDEX} <= names
    assert not list(tmp_path.glob("*.incoming-*"))
    assert all(p.stat().st_mode & 0o077 == 0 for p in folder.glob("*.safetensors"))


def test_a_run_without_held_out_text_is_checked_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On what it was trained on; on drawn tokens where its store is gone; never in silence."""
    run = trained_run(tmp_path, "data.held_out_fraction=0", "evals.held_out_rows=0")

    def exported(to: str, *options: str) -> tuple[str, str]:
        capsys.readouterr()
        assert export.main([str(run.root), "--to", str(tmp_path / to), *options]) == 0
        card = (tmp_path / to / "README.md").read_text()
        return capsys.readouterr().out, next(r for r in card.splitlines() if "| check |" in r)

    trained = "on 4 training rows (no text is held out)"
    for said in exported("a"):
        assert "logits equal the trained model's to" in said
        assert trained in said
    assert (
        "not checked against the trained model, as --rows 0 asks" in exported("b", "--rows", "0")[0]
    )
    (store,) = (tmp_path / "stores").glob("files-*")
    (store / "train-00000.tokens").rename(tmp_path / "moved")
    for said in exported("c", "--rows", "3"):
        assert "on 3 rows of random tokens (its token store cannot be read)" in said


def test_a_wrong_weight_is_noticed_on_training_rows_and_on_random_ones(
    tmp_path: Path,
) -> None:
    run = trained_run(tmp_path, "data.held_out_fraction=0", "evals.held_out_rows=0")
    name = "model.layers.1.mlp.down_proj.weight"
    found = open_trained(run.root)
    tokenizer = tokenizer_of(found)
    for _ in range(2):
        wrong = replace(found, source=Doubled(found.source, name))
        rows = rows_to_compare(found.plan, 2)
        with pytest.raises(ExportMismatch, match="logits differ"):
            export_folder(
                wrong,
                tmp_path / "out",
                dtype="fp32",
                max_shard_bytes=10**9,
                tokenizer=tokenizer,
                rows=rows.batches,
                rows_are=rows.what,
            )
        for shard in (tmp_path / "stores").glob("files-*/train-*.tokens"):
            shard.unlink()
    assert "random" in rows.what
    found.close()


def test_exported_weights_are_the_masters_bit_for_bit(trained: Trained, tmp_path: Path) -> None:
    done = export_folder(
        trained,
        tmp_path / "out",
        dtype="fp32",
        max_shard_bytes=10**9,
        tokenizer=tokenizer_of(trained),
        rows=[],
    )
    theirs = dict(load_pretrained(done.folder, dtype=torch.float32).named_parameters())
    ours = dict(load_model(trained, dtype=torch.float32, device=_CPU).named_parameters())
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_tied_head_is_exported_once(tmp_path: Path) -> None:
    tied = trained_run(tmp_path, "model.tie_word_embeddings=true", name="tied")
    assert export.main([str(tied.root), "--to", str(tmp_path / "out")]) == 0
    model = load_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_wrong_weight_is_not_published(trained: Trained, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    wrong = replace(trained, source=Doubled(trained.source, name))
    with pytest.raises(ExportMismatch, match="logits differ from the trained model's by up to"):
        export_folder(
            wrong,
            tmp_path / "out",
            dtype="fp32",
            max_shard_bytes=10**9,
            tokenizer=tokenizer_of(trained),
            rows=held_out_rows(trained.plan, 2),
        )
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert export.main([str(run.root), "--to", str(tmp_path)]) == Exit.REFUSED
    assert "exists already; choose another folder with --to" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_evaluate_says_what_the_run_said_of_itself(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows, by hand: the mean over terms of F.cross_entropy of transformers' model."""
    assert evaluate.main([str(run.root), "--rows", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert export.main([str(run.root), "--to", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    capsys.readouterr()
    model = load_pretrained(tmp_path / "out", dtype=torch.float32)
    plan = open_trained(run.root).plan
    loss, right, terms = 0.0, 0, 0
    for batch in held_out_rows(plan, 5):
        with torch.no_grad():
            logits = model(
                input_ids=batch.inputs_RT, position_ids=batch.positions_RT, use_cache=False
            ).logits.flatten(0, 1)
        labels = batch.labels_RT.flatten()
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
        terms += int((labels >= 0).sum())
    assert said["terms"] == terms
    assert said["loss"] == pytest.approx(loss / terms, rel=1e-5)
    assert said["token_accuracy"] == pytest.approx(right / terms)
    tokenizer = TextTokenizer.open(Path(plan.stores[0].path))
    rows = [row[row >= 0] for b in held_out_rows(plan, 5) for row in b.labels_RT]
    texts = [row[row != tokenizer.end_of_text_id].tolist() for row in rows]
    pieces = [tokenizer.tokenizer.id_to_token(one) for row in texts for one in row]
    # a letter of a byte-level token is one byte of the text; not so where a row cuts a letter up
    assert said["bits_per_byte"] == pytest.approx(loss / math.log(2) / len("".join(pieces)))
    assert evaluate.main([str(tmp_path / "out"), "--rows", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(said["loss"], rel=1e-5)


def test_greedy_generation_takes_the_likeliest_token_each_time(trained: Trained) -> None:
    model = load_model(trained, dtype=torch.float32, device=_CPU)
    tokenizer = tokenizer_of(trained)
    greedy = Sampling(max_new_tokens=12, temperature=0, top_k=0, top_p=1.0, seed=0)
    said = "".join(continued(model, tokenizer, "the night train", greedy))
    ids = tokenizer.encode("the night train")
    prompt = len(ids)
    with torch.no_grad():
        while len(ids) < prompt + 12:
            inputs = torch.tensor([ids])
            positions = torch.arange(len(ids)).unsqueeze(0)
            best = int(model.logits(inputs, positions)[0, -1].argmax())
            if best == tokenizer.end_of_text_id:
                break
            ids.append(best)
    assert said == tokenizer.decode(ids[prompt:])


def test_generate_repeats_with_a_seed_and_works_on_an_exported_folder(
    run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def text(path: Path, seed: int) -> str:
        options = ["--prompt", "the night", "--max-new-tokens", "20", "--seed", str(seed)]
        assert generate.main([str(path), *options]) == 0
        return capsys.readouterr().out

    first = text(run.root, 1)
    assert first.startswith("the night")
    assert first == text(run.root, 1)
    assert first != text(run.root, 2)
    assert export.main([str(run.root), "--to", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    capsys.readouterr()
    assert text(tmp_path / "out", 1) == first


def test_one_checkpoint_of_a_run_can_be_named(
    run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for argv in (["--step", "3"], []):
        assert evaluate.main([str(run.root), *argv, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert evaluate.main([str(run.checkpoints / "step-00000003"), "--json"]) == 0
    found.append(json.loads(capsys.readouterr().out))
    assert [f["step"] for f in found] == [3, _STEPS, 3]
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([".", "--step", "4"], "has no checkpoint of step 4; there is 3, 6"),
        (["nowhere"], "is neither a run folder, a checkpoint"),
        ([".", "--rows", "0"], "--rows 0: nothing is asked for; give 1 or more, as in --rows 256"),
    ],
)
def test_what_is_not_there_is_refused(
    argv: list[str], message: str, run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    path, *options = argv
    assert evaluate.main([str(run.root / path), *options]) == Exit.REFUSED
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fraction", "why", "fix"),
    [
        ("0", "held no text out (data.held_out_fraction=0)", "0.01"),
        ("0.0001", "has 0 held-out tokens, not enough for one row: its corpus has too", "0.001"),
    ],
)
def test_a_run_without_held_out_text_is_told_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    fraction: str,
    why: str,
    fix: str,
) -> None:
    rows = "0" if fraction == "0" else "5"
    run = trained_run(
        tmp_path,
        f"data.held_out_fraction={fraction}",
        f"evals.held_out_rows={rows}",
        "steps.total=2",
    )
    said_once = [r.message for r in caplog.records if "nothing will be evaluated" in r.message]
    assert len(said_once) == (rows != "0")  # who asks for no evaluation knows
    for line in said_once:
        assert f"tiny {why}" in line
        assert f"paragraph in its source) or data.held_out_fraction={fix} " in line
    assert "longhaul evaluate" not in "".join(_hints(run, capsys))
    assert evaluate.main([str(run.root)]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert f"run tiny {why}" in said
    assert f"run.name=tiny-evaluated data.held_out_fraction={fix}" in said


def _hints(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a person is told to do next with a finished run."""
    capsys.readouterr()
    say_finished(run, _STEPS)
    return [line.strip() for line in capsys.readouterr().out.split("next\n")[1].splitlines()]


@pytest.mark.parametrize(
    ("sources", "prompt", "shown"),
    [
        ("files", "def ", "The"),  # the default's, which is for code
        ("stdlib", "def ", "'def '"),
        ("files", "", "The"),
        ("files", "It was the best", "'It was the best'"),
        ("files", "It was the best of times, it was", "'It was the best of'"),
        ("files", "two\nlines $HOME", "'two lines $HOME'"),
    ],
)
def test_the_next_steps_are_of_this_run(
    run: RunFiles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sources: str,
    prompt: str,
    shown: str,
) -> None:
    plan = read_json(run.attempt(1).plan)
    plan["config"]["evals"]["sample_prompt"] = prompt
    plan["config"]["data"]["sources"] = {"it": {"kind": sources}}
    other = RunFiles(tmp_path / "other")
    other.attempt(1).root.mkdir(parents=True)
    write_json(other.attempt(1).plan, plan)
    assert _hints(other, capsys) == [
        f"longhaul generate {other.root} --prompt {shown}",
        f"longhaul evaluate {other.root}",
        f"longhaul export {other.root}",
        f"longhaul status {other.root}",
    ]
