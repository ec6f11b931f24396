"""The verdict on a resume: what was restored and what was lost, from what both runs left behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.records.json_file import read_lines
from trainer.records.run_files import RunFiles

# Largest relative difference of a loss where sums are taken in another order: 2 ranks, killed and
# resumed on 3, the default model shrunk, CPU. Measured at most, over 24 steps with two seeds and 60
# at a constant rate of 1e-3: 5e-9 in fp32 (losses are added in fp64), 4e-5 under autocast, 6e-5 in
# bf16; fp16 was not run. The bounds leave room for other models. Moments that were thrown away gave
# 1.1e-2 in fp32: above them, but what is lost is found by name (`_lost`), not by them.
BOUNDS = {"fp32": 1e-5, "autocast": 1e-2, "bf16": 1e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Evidence:
    """What one attempt did, by step: losses, rates, samples, and randomness by first sample."""

    losses: Mapping[int, float]
    rates: Mapping[int, float]
    samples: Mapping[int, tuple[int, ...]]  # of all ranks, sorted
    randomness: Mapping[tuple[int, int], int]
    world_size: int

    @property
    def first_step(self) -> int:
        return min(self.losses, default=0)


@dataclass(frozen=True)
class Verdict:
    """`lost`: items that were not restored, by name. `bound`: of a loss, relative; 0: bits."""

    resumed_at_step: int
    world_size: int
    bound: float
    lost: tuple[str, ...]
    different_losses: tuple[int, ...]
    largest_difference: float
    different_tensors: tuple[str, ...]  # of the last checkpoints
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        fine = not self.lost and not self.different_losses and not self.different_tensors
        return self.resumed_at_step > 1 and fine

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def evidence(run: RunFiles, attempt: int) -> Evidence:
    steps = [
        line
        for line in read_lines(run.metrics)
        if line.get("kind") == "step" and line["attempt"] == attempt
    ]
    samples: dict[int, list[int]] = defaultdict(list)
    randomness: dict[tuple[int, int], int] = {}
    witnesses = sorted(run.attempt(attempt).root.glob("witness-*.jsonl"))
    for line in (line for path in witnesses for line in read_lines(path)):
        if "samples" in line:
            samples[line["step"]] += line["samples"]
        elif line["first_sample"] >= 0:  # a micro-batch of padding draws nothing that counts
            randomness[line["step"], line["first_sample"]] = line["rng"]
    return Evidence(
        losses={line["step"]: line["loss"] for line in steps},
        rates={line["step"]: line["learning_rate"] for line in steps},
        samples={step: tuple(sorted(found)) for step, found in samples.items()},
        randomness=randomness,
        world_size=len(witnesses),
    )


def verdict_on(
    expected: Evidence,
    resumed: Evidence,
    *,
    loaded: Sequence[str],
    last: Sequence[str],
    precision: str | None,
) -> Verdict:
    """`expected`: the run that was left alone. `loaded`: tensors ("NAME KIND") that differ between
    the checkpoint and what was loaded from it; `last`: between the last checkpoints. `precision`
    None: bit for bit; else losses within its bound. Pure.
    """
    bound = BOUNDS[precision] if precision is not None else 0.0
    first, total = resumed.first_step, max(expected.losses, default=0)
    steps = range(first, total + 1)
    apart = {step: _apart(expected.losses.get(step), resumed.losses.get(step)) for step in steps}
    details = _lost(expected, resumed, loaded, steps)
    return Verdict(
        resumed_at_step=first,
        world_size=resumed.world_size,
        bound=bound,
        lost=tuple(details),
        different_losses=tuple(step for step in steps if apart[step] > bound),
        largest_difference=max(apart.values(), default=0.0),
        different_tensors=tuple(last),
        details=details,
    )


def _lost(
    expected: Evidence, resumed: Evidence, loaded: Sequence[str], steps: range
) -> dict[str, str]:
    """Item -> the first sign of its loss."""
    found: dict[str, str] = {}
    weights = [name for name in loaded if name.endswith(" master")]
    moments = [name for name in loaded if name not in weights]
    if weights:
        found["weights"] = f"{len(weights)} tensors were loaded with other bits: {weights[0]}"
    if moments:
        found["moments"] = f"{len(moments)} tensors were loaded with other bits: {moments[0]}"
    for step in steps:
        if expected.samples.get(step) != resumed.samples.get(step):
            at, instead = (_first(e.samples.get(step, ())) for e in (expected, resumed))
            found["cursor"] = f"step {step} begins with sample {instead} instead of {at}"
            break
    for step in steps:
        if expected.rates.get(step) != resumed.rates.get(step):
            at, instead = (f"{e.rates.get(step, 0.0):.3g}" for e in (expected, resumed))
            found["learning rate"] = f"step {step} has {instead} instead of {at}"
            break
    for key in sorted(expected.randomness.keys() & resumed.randomness.keys()):
        if expected.randomness[key] != resumed.randomness[key]:
            found["rng"] = f"step {key[0]} draws dropout from another state at sample {key[1]}"
            break
    return found


def _first(samples: Sequence[int]) -> str:
    return str(samples[0]) if samples else "none"


def _apart(expected: float | None, found: float | None) -> float:
    """Relative; infinite where one is missing."""
    if expected is None or found is None:
        return float("inf")
    return 0.0 if expected == found else abs(found - expected) / max(abs(expected), 1e-30)


def as_text(verdict: Verdict) -> list[str]:
    ranks = f"{verdict.world_size} rank{'s' if verdict.world_size > 1 else ''}"
    lines = [f"on {ranks} it went on at step {verdict.resumed_at_step}"]
    if verdict.resumed_at_step <= 1:
        lines.append("  it did not resume from a checkpoint")
    for item, sign in verdict.details.items():
        lines.append(f"  LOST: {item}: {sign}")
    for step in verdict.different_losses[:1]:
        more = f", and at {len(verdict.different_losses) - 1} later steps"
        limit = f", more than {verdict.bound:g}" if verdict.bound else ""
        lines.append(
            f"  step {step}: another loss{more if len(verdict.different_losses) > 1 else ''}; "
            f"up to {verdict.largest_difference:.1e} of it{limit}"
        )
    for name in verdict.different_tensors[:3]:
        lines.append(f"  the last checkpoints differ in {name}")
    if verdict.passed:
        restored = "weights, moments, samples, learning rates and randomness are restored"
        losses = "every loss since and the last checkpoint are bit for bit the same"
        if verdict.bound:
            most = verdict.largest_difference
            losses = f"losses differ by {most:.1e} at most (allowed: {verdict.bound:g})"
        lines.append(f"  {restored}; {losses}")
    return lines
