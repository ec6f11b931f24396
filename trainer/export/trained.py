"""A trained model wherever it lies: in a run, in one checkpoint of it, or in an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.reader import CheckpointReader
from trainer.config.sections.model import FolderModel, Model
from trainer.engine.base import FragmentSource
from trainer.engine.model_setup import settle
from trainer.errors import Refused
from trainer.models.build import build_model, keep_reference
from trainer.models.language_model import LanguageModel
from trainer.models.merged import adapted_values
from trainer.models.starting import fill_later, keep_frozen_values
from trainer.models.weights import SafetensorsFolder
from trainer.plan import RunPlan, stored_plan
from trainer.records.attempt import read_done
from trainer.records.fragment import AVERAGE, MASTER, Fragment
from trainer.records.frozen_folder import hold_on_to
from trainer.records.json_file import read_json, write_json
from trainer.records.manifest import Manifest
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage
from trainer.tasks.table import head_of, reads_prompts_whole

ORIGIN = "longhaul.json"  # in an exported folder: where it came from
_PIECE_ELEMENTS = 4 << 20


@dataclass(frozen=True)
class Trained:
    """`source` gives any range of any parameter; `names` are Hugging Face's, with whole shapes."""

    plan: RunPlan
    step: int
    loss: float | None
    model: Model
    source: FragmentSource
    names: tuple[tuple[str, tuple[int, ...]], ...]
    close: Callable[[], None]


def open_trained(
    path: Path,
    *,
    step: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    average: bool = False,
) -> Trained:
    """`path`: a run folder (its result, or `step`), a step's folder, an exported folder.
    `defaults`: settings that a plan of an older version lacks. `average`: of the weights over
    training, instead of the last ones.

    Raises: Refused if there is nothing of the kind; CheckpointError if it cannot be read.
    """
    known = defaults or {}
    if (path / ORIGIN).is_file():
        if average:
            raise Refused(f"{path} holds one set of weights; --average is asked of a run")
        return _exported(path, known)
    if (path / "run.json").is_file():
        return _from_run(RunFiles(path), step, defaults=known, average=average)
    name = path.name.removeprefix("step-")
    if path.name.startswith("step-") and name.isdigit():
        run = RunFiles(path.parent.parent)
        return _from_run(run, int(name), defaults=known, average=average)
    raise Refused(
        f"{path} is neither a run folder, a checkpoint (step-...), nor a folder made by "
        "longhaul export"
    )


def write_origin(folder: Path, trained: Trained) -> None:
    value = {
        "step": trained.step,
        "loss": trained.loss,
        "plan": trained.plan.model_dump(mode="json"),
    }
    write_json(folder / ORIGIN, value)


def load_model(trained: Trained, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The whole model on this process, ready to evaluate or generate: a LanguageModel, or what its
    task's head stands on.
    """
    model = build_model(
        trained.model,
        vocab_size=trained.plan.vocab_size,
        dtype=dtype,
        device=device,
        head=head_of(trained.plan),
    )
    fill_later(model)  # what is frozen as well: the source has it all
    settle(model, dtype=dtype, device=device)
    for name, parameter in model.named_parameters():
        _fill(name, parameter, trained.source)
    if isinstance(model, LanguageModel):
        model.reads_prompts_whole = reads_prompts_whole(trained.plan.config.task)
    model.eval()
    return model


def with_reference(model: Any, plan: RunPlan, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The loaded model with what it was trained against: itself as it was before its first step.

    Raises: ModelError if the folder that it began with is gone.
    """
    section = plan.config.model
    keep_reference(model, section, vocab_size=plan.vocab_size, dtype=dtype, device=device)
    keep_frozen_values(model.reference, section, seed=plan.config.run.seed)
    settle(model.reference, dtype=dtype, device=device)
    return model


@torch.no_grad()
def _fill(name: str, parameter: torch.nn.Parameter, source: FragmentSource) -> None:
    flat = parameter.view(-1)
    shape = tuple(parameter.shape)
    for start in range(0, flat.numel(), _PIECE_ELEMENTS):
        stop = min(start + _PIECE_ELEMENTS, flat.numel())
        values = torch.empty(stop - start, dtype=torch.float32)
        source.read(Fragment(name, MASTER, shape, start, stop), values)
        flat[start:stop] = values.to(flat.dtype)


def _from_run(
    run: RunFiles, step: int | None, *, defaults: Mapping[str, Any], average: bool
) -> Trained:
    folders = StepFolders(LocalStorage(), run.checkpoints)
    steps = folders.steps() if run.checkpoints.is_dir() else []
    if not steps:
        is_over = any(run.attempts.glob("*/done.json"))
        left = "is finished and none of its checkpoints is left" if is_over else "has saved nothing"
        raise Refused(f"run {run.name} {left}: no checkpoint in {run.checkpoints}")
    chosen = _result(run, steps) if step is None else step
    if chosen not in steps:
        near = ", ".join(str(s) for s in steps[-5:])
        raise Refused(f"run {run.name} has no checkpoint of step {chosen}; there is {near}")
    manifest, _ = folders.manifest(chosen)
    plan = stored_plan(run.plan_behind(manifest.attempt), defaults=defaults)
    stored = StoredTensors(LocalStorage(), folders.step(chosen), manifest)
    if isinstance(plan.config.model, FolderModel) and run.frozen.is_file():
        hold_on_to(Path(plan.config.model.path), run.frozen)
    reader: FragmentSource = CheckpointReader(stored)
    if average:
        reader = _averages(reader, manifest, run)
    source, names = _whole(plan, reader, manifest)
    return Trained(
        plan=plan,
        step=chosen,
        loss=manifest.training.get("last_loss"),
        model=plan.config.model,
        source=source,
        names=names,
        close=stored.close,
    )


@dataclass(frozen=True)
class _Averages:
    """A checkpoint whose parameters are the averages of its weights."""

    stored: FragmentSource

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        kind = AVERAGE if fragment.kind == MASTER else fragment.kind
        self.stored.read(replace(fragment, kind=kind), out)


def _averages(stored: FragmentSource, manifest: Manifest, run: RunFiles) -> _Averages:
    if not all(AVERAGE in tensor.kinds for tensor in manifest.tensors):
        what = f"run {run.name} keeps no average of its weights, which --average asks for"
        raise Refused(f"{what}: leave it out; regularize.ema.decay=0.999 keeps one, from step 1 on")
    return _Averages(stored)


def _result(run: RunFiles, steps: list[int]) -> int:
    """The best step where evaluations decided and the run has ended; else the newest."""
    newest = max(run.attempts.glob("[0-9]*"), default=None)
    done = read_done(newest / "done.json") if newest is not None else None
    best = done.best_step if done is not None else None
    return best if best in steps else steps[-1]


def _whole(
    plan: RunPlan, stored: FragmentSource, manifest: Manifest
) -> tuple[FragmentSource, tuple[tuple[str, tuple[int, ...]], ...]]:
    """What was trained and what was frozen, adapters merged, by the names of the plain model."""
    section = plan.config.model
    if section.adapter.kind == "none":
        return stored, tuple((t.name, t.shape) for t in manifest.tensors)
    meta = build_model(section, vocab_size=plan.vocab_size, dtype=torch.float32, head=head_of(plan))
    values = adapted_values(stored, meta, section, seed=plan.config.run.seed)
    return values, tuple(values.layout)


def _exported(path: Path, defaults: Mapping[str, Any]) -> Trained:
    plan = stored_plan(path / ORIGIN, defaults=defaults)
    origin: dict[str, Any] = read_json(path / ORIGIN)
    trained = plan.config.model
    section = FolderModel(
        kind="folder",
        path=str(path),
        weights="pretrained",
        vocab_size=0,
        attention=trained.attention,
        activation_checkpointing=False,
        compile=False,
        loss_chunk_tokens=trained.loss_chunk_tokens,
    )
    meta = build_model(section, vocab_size=plan.vocab_size, dtype=torch.float32, head=head_of(plan))
    names = tuple((n, tuple(p.shape)) for n, p in meta.named_parameters())
    return Trained(
        plan=plan,
        step=int(origin["step"]),
        loss=origin["loss"],
        model=section,
        source=SafetensorsFolder(path, names),
        names=names,
        close=lambda: None,
    )
