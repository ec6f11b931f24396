"""Each item that a resume can lose is thrown away on purpose, and found by its name."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from launch.verify.resume import different_tensors
from launch.verify.resumed import evidence, verdict_on
from tests.helpers.ranks import RankPool
from tests.helpers.tiny_run import tiny_run
from trainer.commands.checkpoint import main
from trainer.dist.world import World
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles
from trainer.verify.resumed import ITEMS, Item, run_attempt

_PLAIN = (
    *("engine=plain", "resources.ranks_per_node=1", "precision=fp32", "evals=none"),
    *("steps.total=8", "steps.save_every=4", "checkpoint.keep_every=4"),
)
_STEP = 4


def _attempt(world: World, root: Path, number: int, lose: Item | None) -> int:
    return run_attempt(world, RunFiles(root), number, lose=lose)


@pytest.fixture(scope="module")
def whole(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    run = tiny_run(tmp_path_factory.mktemp("proof"), _PLAIN, name="whole")
    assert ranks.run(1, _attempt, run.root, 1, None) == [0]
    return run


def _cut(whole: RunFiles, name: str) -> RunFiles:
    """The run as it would be had it been killed after the save of step 4."""
    root = whole.root.with_name(name)
    shutil.copytree(whole.root, root)
    run = RunFiles(root)
    shutil.rmtree(run.checkpoints / "step-00000008")
    run.attempt(2).root.mkdir()
    write_json(run.attempt(2).plan, read_json(run.attempt(1).plan) | {"attempt": 2})
    return run


def _different(*places: str) -> list[str]:
    out = io.StringIO()
    with redirect_stdout(out):
        main(["diff", *places, "--json"])
    return different_tensors(out.getvalue())


@pytest.mark.parametrize("lose", [None, *ITEMS])
def test_what_a_resume_loses_is_named(lose: Item | None, whole: RunFiles, ranks: RankPool) -> None:
    run = _cut(whole, str(lose))
    assert ranks.run(1, _attempt, run.root, 2, lose) == [_STEP]
    loaded = _different(str(run.root), "4", str(run.attempt(2).root / "loaded"), "4")
    last = _different(str(whole.root), str(run.root))
    verdict = verdict_on(
        evidence(whole, 1), evidence(run, 2), loaded=loaded, last=last, precision=None
    )
    assert verdict.resumed_at_step == _STEP + 1
    assert verdict.lost == ((lose.replace("_", " "),) if lose else ())
    assert verdict.passed is (lose is None), json.dumps(verdict.as_json())
    assert bool(verdict.different_losses) is (lose is not None)
    assert bool(verdict.different_tensors) is (lose is not None)
