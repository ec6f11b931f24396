"""A run goes on with eyes open: what differs, what follows in numbers, what is written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.outcome import Outcome
from launch.run.attempts import close_attempt
from launch.run.housekeeping import rubbish
from launch.run.lineage import write_lineage
from launch.run.run_folder import create, installed_versions, new_attempt
from launch.settings.asked import stored_values
from launch.settings.differences import as_text
from launch.stand import frozen_hash, stand
from launch.start import dry_run, start
from tests.helpers.configs import config
from trainer.changes import Change, changes, version_changes
from trainer.config.schema import Config
from trainer.consequences import counted
from trainer.errors import ConfigError, Exit, Refused
from trainer.plan import RunPlan, StorePlan
from trainer.planning import make_plan
from trainer.records.attempt import Done, write_record
from trainer.records.copies import note_copies
from trainer.records.lineage import branches, read_lineage, write_loaded
from trainer.records.manifest import MANIFEST_NAME, Manifest, digest_of, encode
from trainer.records.run_files import RunFiles

_STORE = StorePlan(
    source="stdlib", path="/s", weight=1.0, train_tokens=819_200, held_out_tokens=0,
    manifest_digest="d",
)  # fmt: skip


def plan(*overrides: str) -> RunPlan:
    return make_plan(
        config(*overrides), attempt=1, run_id="r", stores=[_STORE], device="cpu", cores=6,
        vocab_size_of_tokenizer=4096,
    )  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_of(settings: Config, *, step: int = 100, attempts: int = 1) -> RunFiles:
    """A run that has attempts which ended, and a checkpoint of `step` unless that is 0."""
    stored = settings.model_dump(mode="json")
    run = create(Path(settings.run.root), config=stored, frozen_hash=frozen_hash(settings))
    for _ in range(attempts):
        files = new_attempt(run)
        write_lineage(run, files.number, world_size=2)
        close_attempt(run, files.number, Outcome("again", Exit.FAILED, "rank 1 failed", "crash"))
    if step:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / MANIFEST_NAME).write_bytes(_manifest(step))
    return run


def _manifest(step: int) -> bytes:
    return encode(
        Manifest(
            step=step, world_size=0, attempt=1, run_hash="", parent_step=None, created=0.0,
            rule="even", tensors=(), files=(), training={}, origin={},
        )
    )  # fmt: skip


# --- in numbers ----------------------------------------------------------------------------------

NUMBERS = {
    "batch.global_batch_size=32": (
        "tokens a step 4,096 -> 8,192; "
        "tokens left 819,200 -> 1,638,400, 2.00 times as many, 1.00 -> 2.00 epochs; "
        "rows a rank 8 -> 16, accumulation 1 -> 2"
    ),
    "resources.ranks_per_node=1": "world 2 -> 1, rows a rank 8 -> 16, accumulation 1 -> 2",
    "steps.total=600": "steps left 200 -> 500; tokens left 819,200 -> 2,048,000, 2.50 times",
    "optimizer.learning_rate=0.0001": "learning rate at step 101 ",
    "schedule.final_fraction=0.5": "learning rate at step 101 ",
    "steps.save_every=7": "steps that a failure costs at most 100 -> 7",
    "steps.eval_every=0": "evaluations left 2 -> 1",
    "checkpoint.keep_last=4": "disk for the newest checkpoints ",
    "model.num_hidden_layers=9": "parameters ",
    "engine.stage=3": "memory of a rank ",
    "precision.kind=fp32": "memory of a rank ",
    "optimizer.beta1=0.8": "moments average over steps 10 and 20 -> 5 and 20",
    "optimizer.weight_decay=0": "weights shrink in the next step by ",
    "model.activation_checkpointing=true": "memory of a rank ",
}


@pytest.mark.parametrize("override", NUMBERS)
def test_what_follows_is_told_in_numbers(override: str) -> None:
    [found] = counted(plan(), plan(override), step=100)
    assert NUMBERS[override] in found.numbers
    assert found.numbers in str(found)


def test_the_learning_rate_is_that_of_the_schedule() -> None:
    fixed = "schedule=constant"
    [found] = counted(plan(fixed), plan(fixed, _LR), step=100)
    assert found.numbers == (
        "learning rate at step 101 0.003 -> 0.0001, at the last one 0.003 -> 0.0001"
    )


_LR = "optimizer.learning_rate=0.0001"


def test_the_mixture_is_told_in_shares() -> None:
    two = "+data.sources.more={kind: stdlib, weight: 1.0}"
    [found] = counted(plan(two), plan(two, "data.sources.stdlib.weight=3"), step=5)
    assert found.numbers == "rows stdlib 50.0 %, more 50.0 % -> stdlib 75.0 %, more 25.0 %"


def test_a_fact_of_several_settings_is_told_once() -> None:
    two, three = "batch.micro_batch_size=2", "resources.nodes=3"
    found = counted(plan(two), plan(two, three, "resources.ranks_per_node=1"), step=1)
    assert [bool(change.numbers) for change in found] == [True, False]
    assert found[0].numbers.startswith(
        "world 2 -> 3, rows a rank 8 -> 5.33, accumulation 4 -> 3, rows of weight zero 0 -> 2"
    )


def test_versions_drift_and_end_the_promise_of_equal_bits() -> None:
    assert version_changes({"torch": "2.11", "old": "1"}, {"torch": "2.11", "new": "1"}) == []
    [found] = version_changes({"torch": "2.11"}, {"torch": "2.13"})
    assert (found.where, found.kind, found.keeps_bits) == ("versions.torch", "drift", False)


@pytest.mark.parametrize(
    ("override", "keeps"),
    [
        ("steps.save_every=7", True),
        ("checkpoint.keep_last=9", True),
        ("resources.ranks_per_node=1", False),
        ("engine.stage=3", False),
        ("batch.micro_batch_size=4", False),
        ("model.compile=true", False),
        (_LR, False),
    ],
)
def test_whether_bits_are_kept(override: str, keeps: bool) -> None:
    [found] = counted(plan(), plan(override), step=1)
    assert found.keeps_bits is keeps


def test_the_canonical_engine_keeps_bits_on_any_number_of_ranks() -> None:
    two, one = (config(f"resources.ranks_per_node={n}").model_dump(mode="json") for n in (2, 1))
    engine = {"kind": "canonical", "bucket_elements": 1000}
    fixed = [Config.model_validate(made | {"engine": engine}) for made in (two, one)]
    assert [c.keeps_bits for c in changes(*fixed)] == [True]
    sharded = [Config.model_validate(made) for made in (two, one)]
    assert [c.keeps_bits for c in changes(*sharded)] == [False]
    kind = next(c for c in changes(sharded[0], fixed[0]) if c.where == "engine.kind")
    assert (kind.kind, kind.keeps_bits) == ("drift", False)


# --- at the user's door --------------------------------------------------------------------------


def test_a_refusal_says_what_would_follow(here: Path) -> None:
    run_of(config())
    with pytest.raises(ConfigError, match=r"learning rate at step 101 .*\n.*resume.allow=\[opt"):
        stand(config(_LR))
    allowed = stand(config(_LR, "resume.allow=[optimizer.learning_rate]"))
    assert [c.where for c in allowed.differences] == ["optimizer.learning_rate"]


def test_resume_dry_run_shows_every_difference(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(config())
    typed = ["resume", "first-run", "--dry-run", "steps.total=600", "resources.ranks_per_node=1"]
    assert main(typed) == 0
    said = capsys.readouterr().out
    assert "first-run goes on from step 100 with 2 differences; not bit for bit any more" in said
    assert "free    resources.ranks_per_node: 2 -> 1" in said
    assert "drift   steps.total: 300 -> 600" in said
    assert "steps left 200 -> 500" in said
    assert main([*typed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert {one["where"]: one["kind"] for one in found} == {
        "resources.ranks_per_node": "free", "steps.total": "drift",
    }  # fmt: skip
    assert main(["resume", "first-run", "--dry-run"]) == 0
    assert "difference" not in capsys.readouterr().out


def test_resume_under_another_name_is_refused_and_not_ignored(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(config())
    assert main(["resume", "first-run", "--dry-run", "run.name=other"]) == 2
    assert "longhaul runs rename first-run other" in capsys.readouterr().err
    assert main(["resume", "first-run", "--dry-run", "run.name=first-run"]) == 0


def test_a_run_with_a_misnamed_step_is_not_said_to_have_saved_nothing(here: Path) -> None:
    run = run_of(config(), step=0)
    with pytest.raises(ConfigError, match="and saved nothing"):
        stand(config("run.seed=5"))
    (run.checkpoints / "step-100").mkdir(parents=True)
    with pytest.raises(ConfigError, match="it cannot go on with these"):
        stand(config("run.seed=5"))


def test_nor_is_one_whose_steps_lie_in_a_place_that_its_settings_name_no_more(here: Path) -> None:
    run = run_of(config(), step=0)
    with pytest.raises(ConfigError, match="and saved nothing"):
        stand(config("run.seed=5"))
    assert [one.path for one in rubbish([run], keep=None, failed=True)] == [run.root]
    note_copies(run.copies, "s3://b/first-run", 8)
    with pytest.raises(ConfigError, match="it cannot go on with these"):
        stand(config("run.seed=5"))
    assert rubbish([run], keep=None, failed=True) == []


def test_plan_shows_how_the_run_of_that_name_differs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(config())
    assert main(["plan", _LR]) == 0
    assert "branch  optimizer.learning_rate: 0.003 -> 0.0001" in capsys.readouterr().out
    assert main(["plan", "run.name=other", _LR]) == 0
    assert "branch" not in capsys.readouterr().out


def test_other_versions_are_told(here: Path) -> None:
    run = run_of(config())
    lines = [json.loads(line) for line in run.lineage.read_text().splitlines()]
    lines[-1]["versions"]["torch"] = "1.0"
    run.lineage.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = dry_run(config())
    new = installed_versions()["torch"]
    assert f"drift   torch (version): 1.0 -> {new}" in found.differences_text


def test_a_run_that_saved_nothing_says_how_its_name_is_freed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(config(), step=0)
    assert main(["train", "model=gpt2", "data.sequence_length=128"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "1 problem in the configuration" in said
    assert "and saved nothing" in said
    assert "longhaul runs gc runs/first-run --failed --yes" in said
    assert main(["runs", "gc", "runs/first-run", "--failed", "--yes"]) == 0
    stand(config("model=gpt2"))  # its name is free


def test_what_was_imported_as_step_0_was_saved(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(config(), step=0)
    (run.checkpoints / "step-00000000").mkdir(parents=True)
    (run.checkpoints / "step-00000000/manifest.json").write_text("{}")
    assert main(["train", "optimizer.learning_rate=0.5"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "saved nothing" not in said
    assert "try: resume.allow=[optimizer.learning_rate]" in said


def test_a_finished_run_without_a_checkpoint_is_answered_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(config(), step=0)
    write_record(run.attempt(1).done, Done(time=1.0, step=300, loss=4.0))
    left = "finished at step 300; none of its checkpoints is left, to use or to go on from"
    for typed in (
        ["resume", "first-run", "steps.total=600"],
        ["train", "steps.total=600", "--dry-run"],
        ["train", "model=gpt2", "data.sequence_length=128"],
    ):
        assert main(typed) == Exit.REFUSED
        [said] = capsys.readouterr().err.splitlines()
        assert said == (
            f"runs/first-run {left}: begin another run (another run.name), "
            "or move runs/first-run out of the way"
        )
    assert main(["train"]) == Exit.DONE
    assert capsys.readouterr().out == f"first-run is {left}\n"


def test_resume_never_does_not_send_a_run_back_whose_checkpoints_are_all_damaged(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(config())
    anew = "choose another run.name, or move runs/first-run out of the way"
    assert main(["train", "resume=never"]) == Exit.REFUSED
    assert f"{anew}, or go on with it: resume=auto" in capsys.readouterr().err
    for step in run.checkpoints.glob("step-*"):
        (run.checkpoints / "quarantine").mkdir()
        step.rename(run.checkpoints / "quarantine" / f"{step.name}.1")
    assert main(["train", "resume=never"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert f"{anew}: all its checkpoints are in quarantine, so it cannot go on" in said
    assert "resume=auto" not in said
    assert main(["train", "model=gpt2", "data.sequence_length=128"]) == Exit.REFUSED
    assert "saved nothing" not in capsys.readouterr().err  # what is left may be mended
    assert main(["runs", "gc", "runs/first-run", "--failed", "--yes"]) == 0
    assert [p.name for p in (run.checkpoints / "quarantine").iterdir()] == ["step-00000100.1"]
    run.root.rename(here / "aside")
    stand(config("resume=never"))  # its name is free


def test_a_plan_that_is_damaged_keeps_no_run_from_going_on(here: Path) -> None:
    run = run_of(config())
    run.attempt(1).plan.write_text('{"config": 3')
    assert main(["resume", "first-run", "--dry-run"]) == 0


def test_a_root_that_cannot_be_written_is_refused_before_stores_are_made(here: Path) -> None:
    for root in ("/proc/nobody/runs", str(here / "file" / "runs")):
        (here / "file").touch()
        with pytest.raises(Refused, match=r"run.root=.*: nothing can be written in"):
            start(config(f"run.root={root}"))
    assert [path.name for path in here.iterdir()] == ["file"]
    if os.getuid():
        here.chmod(0o500)
        with pytest.raises(Refused, match="Permission denied"):
            start(config())


# --- runs of older versions ----------------------------------------------------------------------


def test_a_run_from_before_some_sections_goes_on(here: Path) -> None:
    run = run_of(config())
    record = json.loads(run.run_json.read_text())
    for section in ("watch", "restart", "guard", "drills", "resume"):
        del record["config"][section]
    run.run_json.write_text(json.dumps(record))
    assert stored_values(run) == config().model_dump(mode="json")
    assert main(["resume", "first-run", "--dry-run"]) == 0
    assert stand(config()).differences == ()


def test_a_plan_from_before_a_setting_goes_on(here: Path) -> None:
    run = run_of(config())
    stored = plan().model_dump(mode="json")
    del stored["config"]["restart"]["max_idle"], stored["config"]["watch"]
    stored["memory_per_rank"] = {"of": "another version"}
    run.attempt(1).plan.write_text(json.dumps(stored))
    assert stored_values(run)["restart"]["max_idle"] == config().restart.max_idle
    assert main(["resume", "first-run", "--dry-run"]) == 0


# --- lineage -------------------------------------------------------------------------------------


def test_lineage_says_what_each_attempt_went_on_from(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(config())
    write_loaded(run.lineage, attempt=1, step=0, checkpoints=run.checkpoints)
    found = [Change("steps.total", 300, 600, "drift", "m", "n")]
    write_lineage(run, new_attempt(run).number, world_size=3, found=found)
    write_loaded(run.lineage, attempt=2, step=100, checkpoints=run.checkpoints)
    with run.lineage.open("a") as file:
        file.write('{"event": "att')  # a writer that was killed
    first, second = read_lineage(run.lineage)
    assert run.lineage.read_bytes()[-1:] != b"\n"
    assert (first.parent, first.step, first.checkpoint, first.bitexact) == (None, 0, "", True)
    assert (second.parent, second.step, second.cause) == (1, 100, "rank 1 failed")
    assert second.checkpoint == digest_of(_manifest(100))
    assert second.written_by == 1
    assert not second.bitexact
    assert second.changes[0]["numbers"] == "n"
    assert second.versions["longhaul"] == installed_versions()["longhaul"]
    assert branches(run.lineage) == []
    other = [Change("batch.global_batch_size", 16, 32, "branch", "m")]
    write_lineage(run, new_attempt(run).number, world_size=3, found=other)
    write_loaded(run.lineage, attempt=3, step=100, checkpoints=run.checkpoints)
    assert branches(run.lineage) == ["branch-at-step-100"]
    assert main(["status", "first-run", "--lineage"]) == 0
    said = capsys.readouterr().out
    assert "steps.total 300 -> 600" in said
    assert second.checkpoint[:12] in said
    assert main(["status", "first-run", "--lineage", "--json"]) == 0
    assert [one["attempt"] for one in json.loads(capsys.readouterr().out)] == [1, 2, 3]


def test_the_text_before_an_attempt(here: Path) -> None:
    run = run_of(config())
    assert as_text(run, []) == ""
    long = Change("steps.total", 300, 600, "drift", "m", "x" * 80)
    [head, first, after] = as_text(run, [long]).splitlines()
    assert head == "first-run goes on from step 100 with 1 difference; not bit for bit any more"
    assert (first.strip(), after.strip()) == ("drift   steps.total: 300 -> 600", "x" * 80)
