"""What DeepSpeed's save_checkpoint leaves, ZeRO stages 1 to 3: where each parameter's values lie.

    mp_rank_00_model_states.pt                          stages 1, 2: names and shapes, by group
    zero_pp_rank_R_mp_rank_00_model_states.pt           stage 3: the same, of every rank
    [bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt    each rank's flat fp32 masters and moments

Stages 1, 2: a group's parameters laid end to end and cut evenly; each rank's file says which
elements it has (`param_slice_mappings`). Stage 3: every parameter cut evenly by itself, the last
rank's part padded; a rank's parts lie end to end in groups of limited size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from trainer.errors import Refused
from trainer.foreign.sandbox import Sandbox, Thing, open_plainly
from trainer.foreign.source import Flat, Source, cut, end_to_end, flat_of, number
from trainer.records.fragment import MASTER

_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_model_states\.pt")
_OPTIMIZER = re.compile(
    r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,6})_optim_states\.pt"
)
_LATEST = "latest"
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NOT_MOMENTS = ("step",)


def is_deepspeed(folder: Path) -> bool:
    names = [p.name for p in folder.iterdir()]
    return _LATEST in names or any(_MODEL.fullmatch(n) for n in names)


def read_deepspeed(folder: Path, sandbox: Sandbox) -> Source:
    """Raises: Refused."""
    folder = _tagged(folder)
    optimizers = _ranked(folder, _OPTIMIZER)
    model_file = _model_file(folder)
    (model,) = sandbox.read(model_file)
    if not optimizers:
        raise Refused(
            f"{folder} has no *_optim_states.pt: it is no ZeRO checkpoint of stage 1 to 3; save "
            "the model as safetensors (save_pretrained) and import that folder"
        )
    states = [_state(sandbox.read(path)[0], path) for path in optimizers]
    stage = _stage(states[0], optimizers[0])
    shapes = _shapes(model, model_file)
    counts = {_partitions(state) for state in states}
    if counts != {len(states)}:
        raise Refused(
            f"{folder} has the optimizer states of {len(states)} ranks, but they speak of "
            f"{max(counts)}; files of some ranks are missing"
        )
    read = _stage_3 if stage == 3 else _stage_1_2
    tensors, updates = read(states, shapes, folder)
    step = updates if updates is not None else _global_steps(model)
    ranks = f"{len(states)} rank" + ("s" if len(states) > 1 else "")
    return Source(what=f"DeepSpeed ZeRO-{stage}, {ranks}", step=step, tensors=tensors)


# --- files ---------------------------------------------------------------------------------------


def _tagged(folder: Path) -> Path:
    """The folder that `latest` names, unless this is one already."""
    if any(_MODEL.fullmatch(p.name) for p in folder.iterdir()):
        return folder
    descriptor = open_plainly(folder / _LATEST)
    try:
        tag = os.pread(descriptor, 256, 0).decode("ascii", errors="replace").strip()
    finally:
        os.close(descriptor)
    if not _TAG.fullmatch(tag):
        raise Refused(f"{folder / _LATEST} names {tag!r}, which is no folder beside it")
    if not (folder / tag).is_dir() or (folder / tag).is_symlink():
        raise Refused(f"{folder / _LATEST} names {tag}, which is not there; give the step's folder")
    return folder / tag


def _ranked(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    found: dict[int, Path] = {}
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if int(match[2]):
            raise Refused(f"{path} is of a model cut over several ranks (mp_rank {int(match[2])})")
        if int(match[1]) in found:
            raise Refused(f"{folder} has two files of rank {int(match[1])}")
        found[int(match[1])] = path
    if sorted(found) != list(range(len(found))):
        gone = min(set(range(max(found))) - found.keys())
        raise Refused(f"{folder} has no *_optim_states.pt of rank {gone}")
    return [found[rank] for rank in sorted(found)]


def _model_file(folder: Path) -> Path:
    """Names and shapes are the same in every rank's."""
    files = [(p, m) for p in folder.iterdir() if (m := _MODEL.fullmatch(p.name))]
    if any(int(m[2]) for _, m in files):
        raise Refused(f"{folder} is of a model cut over several ranks (mp_rank above 0)")
    return min(files, key=lambda item: int(item[1][1] or 0))[0]


# --- what the files say --------------------------------------------------------------------------


def _state(tree: Any, path: Path) -> Mapping[str, Any]:
    state = tree.get("optimizer_state_dict") if isinstance(tree, dict) else None
    if not isinstance(state, dict):
        raise Refused(f"{path} has no optimizer_state_dict; it is not DeepSpeed's")
    return state


def _stage(state: Mapping[str, Any], path: Path) -> int:
    stage = state.get("zero_stage")
    if isinstance(stage, Thing) and stage.arguments:
        stage = stage.arguments[0]
    if stage not in (1, 2, 3):
        raise Refused(f"{path} says zero_stage={stage!r}; stages 1, 2 and 3 can be imported")
    return int(stage)


def _shapes(model: Any, path: Path) -> list[dict[str, tuple[int, ...]]]:
    """Names and whole shapes by parameter group."""
    groups = model.get("param_shapes") if isinstance(model, dict) else None
    if isinstance(groups, dict):  # older versions: one group, no list
        groups = (groups,)
    if not isinstance(groups, tuple) or not all(isinstance(g, dict) for g in groups):
        raise Refused(f"{path} has no param_shapes; it is not DeepSpeed's")
    if model.get("frozen_param_shapes"):
        name = next(iter(model["frozen_param_shapes"]))
        raise Refused(f"{path} has frozen parameters ({name}, for one); a run here trains them all")
    found = [{str(n): tuple(s) for n, s in group.items()} for group in groups]
    for group in found:
        for name, shape in group.items():
            if not all(type(d) is int and d >= 0 for d in shape):
                raise Refused(f"{path}: {name!r} has shape {shape}")
    return found


def _partitions(state: Mapping[str, Any]) -> int:
    count = state.get("partition_count")
    counts = count if isinstance(count, tuple) else (count,)
    return max((c for c in counts if type(c) is int), default=0)


def _global_steps(model: Any) -> int | None:
    found = model.get("global_steps")
    return None if found is None else number(found, "global_steps")


def _moments(base: Any, group: int) -> dict[str, Any]:
    """Of one flat group: moment -> tensor, and `step`."""
    states = base.get("state") if isinstance(base, dict) else None
    if not isinstance(states, dict):
        return {}
    return {str(k): v for k, v in (states.get(group) or {}).items()}


def _kinds_of(state: Mapping[str, Any], masters: str, base: str) -> list[dict[str, Flat]]:
    """One rank's flat groups: kind -> values."""
    groups = state.get(masters)
    if not isinstance(groups, tuple):
        raise Refused(f"a rank's optimizer state has no {masters}: another version of DeepSpeed?")
    found = []
    for group, flat in enumerate(groups):
        held = {MASTER: flat_of(flat, masters)}
        for kind, value in _moments(state.get(base), group).items():
            if kind not in _NOT_MOMENTS:
                moment = flat_of(value, kind)
                # Masters are saved without the padding at their end, moments with it.
                held[kind] = cut(moment, 0, held[MASTER].elements, f"{kind} of group {group}")
        found.append(held)
    return found


def _updates(states: Sequence[Mapping[str, Any]], base: str) -> int | None:
    """How many updates the optimizer counted. Raises: Refused if ranks differ."""
    counts = set()
    for state in states:
        held = state.get(base)
        groups = held.get("state", {}) if isinstance(held, dict) else {}
        for group in groups.values() if isinstance(groups, dict) else ():
            if isinstance(group, dict) and "step" in group:
                counts.add(number(group["step"], "the optimizer's step"))
    if len(counts) > 1:
        raise Refused(f"its ranks or groups made {min(counts)} and {max(counts)} updates")
    return counts.pop() if counts else None


# --- the layouts ---------------------------------------------------------------------------------

_Tensors = dict[tuple[str, str], Flat]
_Shapes = Mapping[str, tuple[int, ...]]


def _stage_1_2(
    states: Sequence[Mapping[str, Any]],
    shapes: Sequence[_Shapes],
    where: Path,
) -> tuple[_Tensors, int | None]:
    base = "base_optimizer_state"
    pieces: dict[tuple[str, str], list[Flat]] = {}
    for state in states:
        held = _kinds_of(state, "single_partition_of_fp32_groups", base)
        slices = state.get("param_slice_mappings")
        if not isinstance(slices, tuple) or len(slices) != len(held):
            raise Refused(f"{where} does not say which rank has what; DeepSpeed does since 0.8")
        for group, addresses in zip(held, slices, strict=True):
            for name, address in dict(addresses).items():
                first, count = _address(address, name)
                for kind, flat in group.items():
                    part = cut(flat, first, first + count, f"{kind} of {name!r}")
                    pieces.setdefault((name, kind), []).append(part)
    known = {name: shape for group in shapes for name, shape in group.items()}
    tensors = {key: end_to_end(parts) for key, parts in pieces.items()}
    return _checked(tensors, known, where), _updates(states, base)


def _address(address: Any, name: str) -> tuple[int, int]:
    state = address.state if isinstance(address, Thing) else None
    if not isinstance(state, dict):
        raise Refused(f"a rank does not say where {name!r} lies")
    return number(state.get("start"), "a start"), number(state.get("numel"), "a length")


def _stage_3(
    states: Sequence[Mapping[str, Any]],
    shapes: Sequence[_Shapes],
    where: Path,
) -> tuple[_Tensors, int | None]:
    base = "optimizer_state_dict"
    known = {name: shape for group in shapes for name, shape in group.items()}
    pieces: dict[tuple[str, str], list[Flat]] = {}
    for rank, state in enumerate(states):
        groups = _kinds_of(state, "fp32_flat_groups", base)
        kinds = set.intersection(*(set(g) for g in groups)) if groups else set()
        flats = {kind: end_to_end(g[kind] for g in groups) for kind in kinds}
        at = 0
        for name, shape in known.items():
            share = -(-prod(shape) // len(states))
            mine = max(0, min(share, prod(shape) - rank * share))
            for kind, flat in flats.items():
                part = cut(flat, at, at + mine, f"{kind} of {name!r}, rank {rank}")
                pieces.setdefault((name, kind), []).append(part)
            at += share
    tensors = {key: end_to_end(parts) for key, parts in pieces.items()}
    return _checked(tensors, known, where), _updates(states, base)


def _checked(tensors: _Tensors, known: Mapping[str, tuple[int, ...]], where: Path) -> _Tensors:
    """With their shapes. Raises: Refused if the ranks together do not hold every element."""
    found: _Tensors = {}
    for (name, kind), flat in tensors.items():
        shape = known.get(name)
        if shape is None or flat.elements != prod(shape):
            wanted = "none" if shape is None else prod(shape)
            raise Refused(f"{where}: {flat.elements} elements of {kind} of {name!r}, not {wanted}")
        found[name, kind] = Flat(flat.pieces, shape)
    return found
