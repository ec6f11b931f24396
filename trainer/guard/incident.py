"""What is kept of a step that went wrong: incidents/step-00000123/rank-00000.json, by each rank.

A rank writes the rows it had, the losses of its micro-steps and what the whole world agreed on:
enough for `longhaul replay` to do the step again on one process. Files are 0600: rows are text.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.batch import Batch, ExampleBatch, TokenBatch
from trainer.errors import RunFolderError

_log = logging.getLogger(__name__)
_LIMIT_TOKENS = 1 << 21  # of a rank's rows; about 30 MB of text. What is beyond is left out
_STEP = re.compile(r"step-(\d{8,16})")
_RANK = re.compile(r"rank-\d{5,}\.json")
_DTYPES = {"int64": torch.int64, "float32": torch.float32, "bool": torch.bool}


@dataclass(frozen=True)
class MicroStep:
    loss: float  # this micro-step's share of the step's mean loss
    batch: Batch | None  # None: left out, there were too many tokens


@dataclass(frozen=True)
class Incidents:
    """Writes the bundles of one rank. `facts`: what the job knows: attempt, seed, engine ..."""

    folder: Path
    rank: int
    facts: Mapping[str, Any]

    @property
    def run_name(self) -> str:
        return self.folder.parent.name

    def write(
        self,
        step: int,
        numbers: Mapping[str, Any],
        *,
        batches: Sequence[Batch],
        losses: Sequence[float],
    ) -> None:
        """A bundle that cannot be written is a line in the log: training must not end for it."""
        left = _LIMIT_TOKENS
        micro_steps = []
        for batch, loss in zip(batches, losses, strict=True):
            left -= batch.tokens
            rows = _rows(batch) if left >= 0 else {}
            samples = list(batch.sample_indices)  # enough to find the rows in their store again
            micro_steps.append({"loss": _number(loss), "samples": samples, **rows})
        content = {
            "version": 1,
            "step": step,
            "rank": self.rank,
            "time": time.time(),
            **self.facts,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **{key: _number(value) for key, value in numbers.items()},
            "micro_steps": micro_steps,
        }
        try:
            _write(self.folder / f"step-{step:08d}" / f"rank-{self.rank:05d}.json", content)
        except OSError as e:
            _log.warning("the incident of step %d was not written: %s", step, e)


@dataclass(frozen=True)
class Incident:
    """One bundle, read back: `shared` is what all ranks agree on, the rest by rank."""

    step: int
    shared: Mapping[str, Any]
    by_rank: Mapping[int, Sequence[MicroStep]]

    @property
    def loss(self) -> float:
        return float(self.shared["loss"])

    @property
    def grad_norm(self) -> float:
        return float(self.shared["grad_norm"])

    @property
    def is_whole(self) -> bool:
        all_there = len(self.by_rank) == self.shared["world_size"]
        return all_there and all(m.batch for steps in self.by_rank.values() for m in steps)


def incident_steps(folder: Path) -> list[int]:
    """Steps with a bundle, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _STEP.fullmatch(p.name)))


def read_incident(folder: Path, step: int) -> Incident:
    """Raises: RunFolderError naming the file that is missing or cannot be read."""
    place = folder / f"step-{step:08d}"
    files = sorted(p for p in place.iterdir() if _RANK.fullmatch(p.name)) if place.is_dir() else []
    if not files:
        raise RunFolderError(f"{place} holds no incident")
    read = [_read(path) for path in files]
    return Incident(step, read[0], {one["rank"]: _micro_steps(one) for one in read})


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        _micro_steps(content)
        if content["version"] != 1:
            raise ValueError(f"of version {content['version']}")
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise RunFolderError(f"{path} is no record of an incident: {e}") from e


def _micro_steps(content: Mapping[str, Any]) -> list[MicroStep]:
    return [MicroStep(float(one["loss"]), _batch(one)) for one in content["micro_steps"]]


def _batch(one: Mapping[str, Any]) -> Batch | None:
    """Raises: KeyError, ValueError or TypeError if it is none."""
    if "fields" in one:
        fields = {
            name: torch.tensor(values, dtype=_DTYPES[dtype])
            for name, (dtype, values) in one["fields"].items()
        }
        return ExampleBatch(fields, tuple(one["samples"]), one["terms"], one["tokens"])
    if "inputs" not in one:
        return None
    inputs, labels, positions = (
        torch.tensor(one[k], dtype=torch.int64) for k in ("inputs", "labels", "positions")
    )
    return TokenBatch(inputs, labels, positions, tuple(one["samples"]), one["terms"], one["tokens"])


def _rows(batch: Batch) -> dict[str, Any]:
    """Nothing of a batch of a kind that only a user's own task knows."""
    if not isinstance(batch, TokenBatch | ExampleBatch):
        return {}
    known = {
        "samples": list(batch.sample_indices),
        "terms": batch.terms,
        "tokens": batch.tokens,
    }
    if isinstance(batch, ExampleBatch):
        fields = {
            name: (str(values.dtype).removeprefix("torch."), values.tolist())
            for name, values in batch.fields.items()
        }
        return {**known, "fields": fields}
    return {
        **known,
        "inputs": batch.inputs_RT.tolist(),
        "labels": batch.labels_RT.tolist(),
        "positions": batch.positions_RT.tolist(),
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not there: a rank that is killed meanwhile leaves a partial file of another name."""
    path.parent.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    partial = path.with_suffix(".partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(partial, flags, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    partial.replace(path)


def _number(value: Any) -> Any:
    """JSON has no NaN; `float` reads these words back."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
