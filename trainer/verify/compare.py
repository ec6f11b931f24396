"""The reference for a plan, and how far a layout's losses and weights are from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.ranges import StoredTensors
from trainer.config.sections.training import AdamW, Optimizer, Sgd
from trainer.data.table import open_sources, open_stream
from trainer.dist.world import Alone
from trainer.errors import Refused
from trainer.models.build import build_model
from trainer.models.exported import causal_lm
from trainer.models.init import InitialValues, initial_rules
from trainer.plan import RunPlan
from trainer.records.fragment import MASTER, Fragment
from trainer.records.run_files import RunFiles
from trainer.schedules import learning_rate
from trainer.storage.local import LocalStorage
from trainer.tasks.table import change_of
from trainer.verify.layouts import Layout, plan_of
from trainer.verify.reference import train_reference


@dataclass(frozen=True)
class Reference:
    """What one plain process gets: loss of every step, and the weights after the last."""

    losses: list[float]
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """Largest absolute differences over steps and over elements."""

    layout: Layout
    loss: float
    weights: float
    loss_bound: float
    weight_bound: float

    @property
    def passed(self) -> bool:
        return self.loss <= self.loss_bound and self.weights <= self.weight_bound


def reference_for(base: RunPlan, *, packing: bool) -> Reference:
    """Train the plan by the independent loop. One process, fp32, whatever the plan's precision.

    Raises: Refused for an optimizer that has no independent counterpart here.
    """
    plan = plan_of(base, Layout("plain", 1, 1, packing))
    config = plan.config
    model = causal_lm(config.model, vocab_size=plan.vocab_size)
    _fill(model, plan)
    optimizer = _optimizer(config.optimizer, model)
    stream = open_stream(
        plan, Alone(), sources=open_sources(plan), cursor=None, change=change_of(plan)
    )
    try:
        losses = train_reference(
            model,
            optimizer,
            (stream.step(step) for step in range(1, config.steps.total + 1)),
            learning_rate=learning_rate(
                config.schedule,
                config.optimizer.learning_rate,
                total_steps=config.steps.total,
                tokens_per_step=plan.tokens_per_step,
            ),
            max_grad_norm=config.optimizer.max_grad_norm,
        )
    finally:
        stream.close()
    return Reference(losses, {n: p.detach().clone() for n, p in model.named_parameters()})


def compare(
    reference: Reference,
    layout: Layout,
    losses: Sequence[float],
    *,
    folder: Path,
    bounds: tuple[float, float],
) -> Verdict:
    """`bounds`: allowed difference of a loss and of a weight."""
    loss = max(abs(a - b) for a, b in zip(reference.losses, losses, strict=True))
    return Verdict(layout, loss, max(_apart(reference, folder / layout.name)), *bounds)


def reference_from(layout: Layout, losses: Sequence[float], *, folder: Path) -> Reference:
    """A layout's own result as the reference: for precisions the independent loop has not."""
    return Reference(list(losses), dict(_weights(folder / layout.name)))


def bounds_of(base: RunPlan) -> tuple[float, float]:
    """How much rounding may do in a few dozen steps to a loss and to a weight (docs/log.md).

    Adam divides by the root of a squared gradient: where that is near zero it turns a difference
    in the last bit into one of a whole update. SGD does not, and sees a wrong scale at once.
    """
    if base.config.precision.kind != "fp32":
        return 1e-3, base.config.optimizer.learning_rate * base.config.steps.total
    return (1e-6, 1e-6) if isinstance(base.config.optimizer, Sgd) else (5e-6, 5e-5)


def _apart(reference: Reference, run: Path) -> Iterator[float]:
    found = dict(_weights(run))
    if found.keys() != reference.weights.keys():
        raise ValueError("the layout trained other parameters than the reference")
    for name, weight in reference.weights.items():
        yield float((found[name] - weight).abs().max())


def _weights(run: Path) -> Iterator[tuple[str, torch.Tensor]]:
    folders = StepFolders(LocalStorage(), RunFiles(run).checkpoints)
    step = folders.steps()[-1]
    manifest, _ = folders.manifest(step)
    stored = StoredTensors(LocalStorage(), folders.step(step), manifest)
    try:
        for tensor in manifest.tensors:
            yield tensor.name, torch.from_numpy(stored.array(tensor.name, MASTER))
    finally:
        stored.close()


@torch.no_grad()
def _fill(model: torch.nn.Module, plan: RunPlan) -> None:
    """The values every layout begins with; read whole, by name."""
    meta = build_model(plan.config.model, vocab_size=plan.vocab_size, dtype=torch.float32)
    source = InitialValues(initial_rules(meta), plan.config.run.seed)
    for name, parameter in model.named_parameters():
        flat = torch.empty(parameter.numel())
        source.read(Fragment(name, MASTER, tuple(parameter.shape), 0, parameter.numel()), flat)
        parameter.copy_(flat.view_as(parameter))


def _optimizer(section: Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """torch's own, its plain loop over tensors; decay on matrices alone."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if isinstance(section, AdamW):
        betas = (section.beta1, section.beta2)
        return torch.optim.AdamW(
            groups, lr=section.learning_rate, betas=betas, eps=section.eps, foreach=False
        )
    if isinstance(section, Sgd) and section.weight_decay == 0:  # torch's decay is another one
        return torch.optim.SGD(
            groups, lr=section.learning_rate, momentum=section.momentum, foreach=False
        )
    raise Refused(f"optimizer {section.kind} has no independent counterpart to compare with")
