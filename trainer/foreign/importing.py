"""A foreign checkpoint becomes one of ours: the same writer, manifest and verifier as any save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.orders import Publish, WriteFile, publish, write_file
from trainer.checkpoint.verify import verify_step
from trainer.engine.base import FragmentSource
from trainer.engine.fragments import moment_names
from trainer.engine.model_setup import trained
from trainer.errors import CheckpointError, ModelError, Refused
from trainer.foreign.sandbox import Sandbox
from trainer.foreign.source import Source, blocks, fitted, zeros
from trainer.foreign.torch_folder import METADATA, is_saved_by_torch, read_dcp, read_torch_files
from trainer.foreign.zero_folder import is_deepspeed, read_deepspeed
from trainer.models.build import build_model
from trainer.models.weights import SafetensorsFolder
from trainer.optim.optimizers import make_optimizer
from trainer.plan import RunPlan
from trainer.records.fragment import MASTER, Fragment
from trainer.records.manifest import LogicalTensor, Manifest, RankFile, encode, rank_file_name
from trainer.storage.local import Bytes, LocalStorage

ATTEMPT = 0  # no attempt of the run wrote this
_BLOCK_ELEMENTS = 4 << 20
Values = Callable[[Fragment], Iterator[Bytes]]


@dataclass(frozen=True)
class Imported:
    """`moments`: whether the optimizer's state came along; if not, it begins anew at step 0."""

    what: str
    step: int
    moments: bool
    tensors: int
    elements: int
    bytes: int
    folder: Path
    missing: tuple[str, ...]  # what the reading process could not give up


def wanted(plan: RunPlan) -> tuple[Fragment, ...]:
    """Every whole tensor that the run's engine holds, in the model's order. Takes no memory."""
    config = plan.config
    model = build_model(config.model, vocab_size=plan.vocab_size, dtype=torch.float32)
    named = trained(model)
    kinds: dict[int, tuple[str, ...]] = {}
    # torch refuses a fused optimizer on the meta device: elements that are all the same one.
    shown = [(n, torch.nn.Parameter(torch.zeros(()).expand(p.shape))) for n, p in named]
    optimizer = make_optimizer(config.optimizer, shown)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kinds[id(parameter)] = moment_names(optimizer, group)
    return tuple(
        Fragment(name, kind, tuple(p.shape), 0, p.numel())
        for name, p in shown
        for kind in (MASTER, *kinds[id(p)])
    )


def import_checkpoint(
    source: Path,
    folder: Path,
    *,
    run_id: str,
    fragments: Sequence[Fragment],
    weights_only: bool = False,
) -> Imported:
    """Write `source` into the checkpoints folder `folder` as a step that a run resumes from.

    The step is the number of updates that the source's optimizer made: moments and their
    correction belong together. Without moments it is 0, and they are zero, as they are at 0.
    Raises: Refused for what cannot be imported; OSError, CheckpointError where writing fails.
    """
    folders = StepFolders(LocalStorage(), folder)
    if steps := folders.steps():
        raise Refused(f"{folder} has checkpoints ({steps[-1]} is the last): take another run name")
    sandbox = Sandbox()
    what, step, moments, values = _opened(
        source, fragments, sandbox=sandbox, weights_only=weights_only
    )
    size = _write(folders, step, fragments, values, run_id=run_id, what=what)
    result = verify_step(LocalStorage(), folder, step)
    if result.problems:
        raise CheckpointError(f"what was written does not verify: {result.problems[0]}")
    return Imported(
        what=what,
        step=step,
        moments=moments,
        tensors=len({f.name for f in fragments}),
        elements=sum(f.length for f in fragments if f.kind == MASTER),
        bytes=size,
        folder=folders.step(step),
        missing=tuple(sorted(sandbox.missing)),
    )


# --- reading -------------------------------------------------------------------------------------


def _opened(
    path: Path, fragments: Sequence[Fragment], *, sandbox: Sandbox, weights_only: bool
) -> tuple[str, int, bool, Values]:
    """What it is, its step, whether moments come along, and how a tensor's values are read."""
    if path.is_dir() and not (path / METADATA).exists() and any(path.glob("*.safetensors")):
        return "Hugging Face safetensors", 0, False, _of_folder(path, fragments)
    source = read_source(path, sandbox)
    needed = {f.kind for f in fragments} - {MASTER}
    if weights_only or not source.moments:
        source = source.without_moments()
    elif lacking := sorted(needed - source.moments):
        raise Refused(
            f"the run's optimizer keeps {', '.join(lacking)}, the source has "
            f"{', '.join(sorted(source.moments))}: take the optimizer it was trained with "
            "(optimizer=...), or leave its state behind with --weights-only"
        )
    if needed and source.moments and source.step is None:
        raise Refused(f"{path} has moments but does not say after how many updates: --weights-only")
    places = fitted(source, fragments)

    def values(fragment: Fragment) -> Iterator[Bytes]:
        flat = places.get((fragment.name, fragment.kind))
        return zeros(fragment.length) if flat is None else blocks(flat)

    has_moments = bool(source.moments & needed)
    return source.what, (source.step or 0) if source.moments else 0, has_moments, values


def read_source(path: Path, sandbox: Sandbox) -> Source:
    """Raises: Refused if it is nothing that can be imported."""
    if not path.exists():
        raise Refused(f"{path}: there is nothing")
    try:
        return _read(path, sandbox)
    # What a table says is anybody's: where a mapping is a number, the readers trip over it.
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as e:
        raise Refused(
            f"{path} is not imported: a table in it is not laid out as its writer lays it out "
            f"({type(e).__name__}: {str(e)[:120]})"
        ) from e


def _read(path: Path, sandbox: Sandbox) -> Source:
    if path.is_dir() and (path / METADATA).exists():
        return read_dcp(path, sandbox)
    if path.is_dir() and is_deepspeed(path):
        return read_deepspeed(path, sandbox)
    if is_saved_by_torch(path):
        return read_torch_files(path, sandbox)
    raise Refused(
        f"{path} is no checkpoint that can be imported: DeepSpeed's save_checkpoint (ZeRO 1 to 3), "
        "a torch DCP folder, a Hugging Face folder, or a file of torch.save"
    )


def _of_folder(path: Path, fragments: Sequence[Fragment]) -> Values:
    layout = [(f.name, f.shape) for f in fragments if f.kind == MASTER]
    try:
        source: FragmentSource = SafetensorsFolder(path, layout)
    except ModelError as e:
        raise Refused(str(e)) from e

    def values(fragment: Fragment) -> Iterator[Bytes]:
        for start in range(0, fragment.length, _BLOCK_ELEMENTS):
            stop = min(start + _BLOCK_ELEMENTS, fragment.length)
            out = torch.empty(stop - start, dtype=torch.float32)
            part = Fragment(fragment.name, fragment.kind, fragment.shape, start, stop)
            source.read(part, out)
            yield out.numpy().view(np.uint8)

    return values


# --- writing -------------------------------------------------------------------------------------


def _write(
    folders: StepFolders,
    step: int,
    fragments: Sequence[Fragment],
    values: Values,
    *,
    run_id: str,
    what: str,
) -> int:
    """One file of a world of one, published like any step. Returns its bytes."""
    held = [f for f in fragments if f.length]
    stream = (block for fragment in held for block in values(fragment))
    order = WriteFile(step=step, attempt=ATTEMPT, rank=0, world_size=1, chunk_bytes=1 << 20)
    written = write_file(folders, order, held, stream)
    manifest = Manifest(
        step=step,
        world_size=1,
        attempt=ATTEMPT,
        run_hash=run_id,
        parent_step=None,
        created=time.time(),
        rule="even",
        tensors=_tensors(fragments),
        files=(RankFile(rank_file_name(0), written["size"], written["digest"]),),
        training={"step": step, "tokens_seen": 0, "last_loss": None},
        origin={"engine": "imported", "from": what, "torch": torch.__version__},
    )
    said = publish(
        folders,
        Publish(
            step=step,
            attempt=ATTEMPT,
            world_size=1,
            manifest=encode(manifest).decode(),
            keep_last=1,
            keep_every=0,
            needed_before=None,
            owner=None,
        ),
    )
    if said["problem"]:
        raise CheckpointError(str(said["problem"]))
    return int(written["size"])


def _tensors(fragments: Sequence[Fragment]) -> tuple[LogicalTensor, ...]:
    kinds: dict[str, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for f in fragments:
        kinds.setdefault(f.name, []).append(f.kind)
        shapes[f.name] = f.shape
    return tuple(
        LogicalTensor(name, shapes[name], tuple(sorted(kinds[name])))
        for name in shapes
        if math.prod(shapes[name]) or kinds[name]
    )
