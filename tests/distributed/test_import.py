"""What other programs really wrote is imported bit for bit, and training goes on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.importing import import_run
from launch.outcome import where_it_goes_on
from tests.helpers.foreign_sources import (
    BETAS,
    EPS,
    MOMENTS,
    RATE,
    SmallNet,
    Tensors,
    groups,
    loss_of,
    train_with_dcp,
    train_with_deepspeed,
)
from tests.helpers.models import filled, save_folder
from tests.helpers.ranks import RankPool
from tests.helpers.tiny_run import TINY, tiny_plan
from trainer.checkpoint.ranges import open_step
from trainer.checkpoint.store import CheckpointStore
from trainer.config.sections.training import PrecisionSection
from trainer.dist.world import Alone
from trainer.engine.plain import PlainEngine
from trainer.errors import Refused
from trainer.export.trained import open_trained
from trainer.foreign.importing import Imported, import_checkpoint, wanted
from trainer.models.build import build_model
from trainer.models.init import InitialValues, initial_rules
from trainer.records.fragment import MASTER, Fragment
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage

_STEPS = 3
_RUN = "a-run"


def _fragments() -> list[Fragment]:
    return [
        Fragment(name, kind, tuple(p.shape), 0, p.numel())
        for name, p in SmallNet().named_parameters()
        for kind in (MASTER, *MOMENTS)
    ]


def _imported(source: Path, folder: Path) -> Imported:
    return import_checkpoint(source, folder, run_id=_RUN, fragments=_fragments())


def _check_values(folder: Path, held: Tensors) -> None:
    stored = open_step(LocalStorage(), folder, _STEPS)
    assert {(n, k) for n, t in stored.tensors.items() for k in t.kinds} == held.keys()
    for (name, kind), expected in held.items():
        found = torch.from_numpy(stored.array(name, kind).reshape(-1))
        assert torch.equal(found, expected), (name, kind)
    stored.close()


def _after_one_more(folder: Path, precision: str) -> dict[str, torch.Tensor]:
    """An engine of ours goes on from the import by one step."""

    def make_optimizer(named: Sequence[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        given = groups(_Named(named))
        return torch.optim.AdamW(given, lr=RATE, betas=BETAS, eps=EPS)

    make: Callable[..., Any] = make_optimizer
    engine = PlainEngine(
        SmallNet,
        make,
        device=torch.device("cpu"),
        precision=PrecisionSection(kind=precision, accumulate_in="fp32"),
        max_grad_norm=0,
    )
    store = CheckpointStore(folder, run_hash=_RUN)
    training = store.load_latest(Alone(), engine)
    assert training is not None
    assert training["step"] == _STEPS
    engine.accumulate(loss_of(engine.model, _STEPS + 1), last=True)
    engine.step(lr=RATE)
    return {
        h.fragment.name: h.values.detach().reshape(-1)
        for h in engine.fragments()
        if h.fragment.kind == MASTER
    }


class _Named(torch.nn.Module):
    """Masters under the names of the model's parameters."""

    def __init__(self, named: Sequence[tuple[str, torch.nn.Parameter]]) -> None:
        super().__init__()
        self._named = named

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return iter(self._named)


@pytest.mark.parametrize(("stage", "kind"), [(1, "fp32"), (2, "bf16"), (3, "fp32")])
def test_what_deepspeed_saved_goes_on_here(
    ranks: RankPool, tmp_path: Path, stage: int, kind: str
) -> None:
    source, folder = tmp_path / "theirs", tmp_path / "run" / "checkpoints"
    answers = ranks.run(2, train_with_deepspeed, str(source), stage, _STEPS, kind)
    held, after = answers[0]
    done = _imported(source, folder)
    assert (done.step, done.moments) == (_STEPS, True)
    assert done.what == f"DeepSpeed ZeRO-{stage}, 2 ranks"
    _check_values(folder, held)
    mine = _after_one_more(folder, kind)
    off = max(float((mine[name] - after[name]).abs().max()) for name in after)
    # One more update moves elements by RATE = 0.01. Measured: 0.0 in all three cases.
    assert off <= 1e-7


@pytest.mark.parametrize("world_size", [2])
def test_what_torch_saved_goes_on_here(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    source, folder = tmp_path / "theirs", tmp_path / "run" / "checkpoints"
    answers = ranks.run(world_size, train_with_dcp, str(source), _STEPS)
    held, after = answers[0]
    done = _imported(source, folder)
    assert (done.what, done.step, done.moments) == ("torch DCP", _STEPS, True)
    _check_values(folder, held)
    mine = _after_one_more(folder, "fp32")
    assert max(float((mine[name] - after[name]).abs().max()) for name in after) <= 1e-6


def _can_be_used_before_it_is_trained(folder: Path) -> None:
    """No attempt wrote the step, and it is one to go on from all the same."""
    trained = open_trained(folder)
    assert (trained.step, trained.plan.config.run.name) == (0, "from-folder")
    trained.close()
    assert where_it_goes_on(RunFiles(folder)) == "from step 0, which was imported"


def test_the_command_makes_a_run_that_goes_on(tmp_path: Path, capfd: Any) -> None:
    """From a folder of Hugging Face and from torch.save, by the verb that people type."""
    plan = tiny_plan(tmp_path)
    model = build_model(plan.config.model, vocab_size=plan.vocab_size, dtype=torch.float32)
    rules = initial_rules(model)
    filled(model, InitialValues(rules, seed=11))
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    folder = save_folder(model, tmp_path / "theirs")
    torch.save({"state_dict": {f"module.{n}": w for n, w in weights.items()}}, tmp_path / "w.pt")
    corpus = plan.config.data.sources["files"].paths[0]
    settings = [
        *TINY,
        f"data.sources.files.paths=[{corpus}]",
        f"data.store_root={tmp_path / 'stores'}",
        f"run.root={tmp_path / 'runs'}",
    ]
    assert import_run([str(folder), "from-folder", *settings]) == 0
    what = "imported Hugging Face safetensors as step 0 of run from-folder"
    assert what in capfd.readouterr().out
    _can_be_used_before_it_is_trained(tmp_path / "runs" / "from-folder")
    from_file = tmp_path / "from-file" / "checkpoints"
    import_checkpoint(tmp_path / "w.pt", from_file, run_id=_RUN, fragments=wanted(plan))
    for checkpoints in (tmp_path / "runs" / "from-folder" / "checkpoints", from_file):
        stored = open_step(LocalStorage(), checkpoints, 0)
        for tensor, expected in weights.items():
            assert torch.equal(torch.from_numpy(stored.array(tensor, MASTER)), expected)
            assert not stored.array(tensor, "exp_avg").any()
        stored.close()
    # A model of another shape: one sentence, and no run is left.
    wrong = [*settings, "model.hidden_size=64", "model.head_dim=16"]
    assert import_run([str(tmp_path / "w.pt"), "wrong", *wrong]) == 2
    said = capfd.readouterr().err
    assert "has shape" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs" / "wrong").exists()
    with pytest.raises(Refused, match="has begun already; take another name"):
        import_run([str(folder), "from-folder", *settings])
    with pytest.raises(Refused, match="there is nothing to import"):
        import_run([str(tmp_path / "nowhere"), "other", *settings])
