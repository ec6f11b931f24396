"""What the engine suite runs inside ranks: a small model, its data, and every kind of case.

The model has what breaks layouts: odd sizes, a bias and a norm, a frozen parameter, a buffer that
must stay fp32, dropout, a checkpointed block. Rows have unequal numbers of terms, some none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer.config.sections.training import AdamW, CanonicalEngine, PrecisionSection, Sgd
from trainer.config.sections.training import DeepSpeedEngine as EngineSection
from trainer.dist.world import World
from trainer.engine import canonical
from trainer.engine.base import Engine, FragmentSource
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.plain import PlainEngine
from trainer.optim.muon import Muon
from trainer.records.fragment import MASTER, Fragment

VOCABULARY, WIDTH, INNER = 37, 13, 22  # every kind of shard is padded on 2 ranks or on 3
WIDE = {"width": 513, "inner": 2201}  # on 2 ranks two weights are large enough for swap files
ROWS, LENGTH, IGNORED = 12, 9, -100
Tensors = dict[tuple[str, str], torch.Tensor]  # (name, kind) -> whole tensor, flat


@dataclass(frozen=True, kw_only=True)
class Case:
    """One engine trained for `steps` steps."""

    engine: Literal["plain", "canonical", 0, 1, 2, 3]
    precision: Literal["fp32", "bf16", "autocast"] = "fp32"
    accumulate_in: Literal["fp32", "weights"] = "fp32"
    optimizer: Literal["adamw", "sgd", "momentum", "muon"] = "adamw"
    micro_steps: int = 1
    steps: int = 20
    dropout: float = 0.0
    checkpointed: bool = False
    meta: bool = True
    wide: bool = False
    changes: tuple[tuple[str, Any], ...] = ()  # to the engine's section
    fault: Literal["", "average over ranks", "average over micro-steps"] = ""


@dataclass(frozen=True)
class Result:
    losses: list[float]
    norms: list[float]
    fragments: list[tuple[Fragment, torch.Tensor]]  # of this rank


class Net(nn.Module):
    def __init__(
        self,
        *,
        dropout: float = 0.0,
        checkpointed: bool = False,
        width: int = WIDTH,
        inner: int = INNER,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.up = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner)
        self.down = nn.Linear(inner, width, bias=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.frozen = nn.Parameter(torch.linspace(-1, 1, width), requires_grad=False)
        self.register_buffer("waves", torch.linspace(0, 1, width), persistent=False)
        self.dropout, self.checkpointed = dropout, checkpointed

    def forward(self, inputs_RT: torch.Tensor) -> torch.Tensor:
        assert self.waves.dtype == torch.float32, "a buffer was cast with the weights"
        x_RTD = self.embed(inputs_RT)
        x_RTD = x_RTD + (self.waves + self.frozen).to(x_RTD.dtype)
        if self.checkpointed:
            x_RTD = checkpoint(self.block, x_RTD, use_reentrant=False)
        else:
            x_RTD = self.block(x_RTD)
        return self.head(x_RTD)

    def block(self, x_RTD: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(F.gelu(self.norm(self.up(x_RTD))), self.dropout, self.training)
        return x_RTD + self.down(hidden)


class Drawn:
    """Values that are a pure function of name and element; moments are 0."""

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        if fragment.kind != MASTER:
            out.zero_()
            return
        out.copy_(drawn(fragment.name, fragment.shape).view(-1)[fragment.start : fragment.stop])


class Held:
    """Whole tensors in memory, as a checkpoint would give them."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        out.copy_(self.tensors[fragment.name, fragment.kind][fragment.start : fragment.stop])


class AveragesOverRanks(DeepSpeedEngine):
    """A planted fault: gradients averaged over the ranks, as DeepSpeed does unless told."""

    def _undo_average(self, loss: torch.Tensor) -> torch.Tensor:
        return super()._undo_average(loss) / self._world.place.world_size


class AveragesOverMicroSteps(DeepSpeedEngine):
    """A planted fault: lets DeepSpeed divide by the number of micro-steps."""

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        self._ds.set_gradient_accumulation_boundary(last)
        self._ds.backward(self._undo_average(loss))


FAULTS = {
    "": DeepSpeedEngine,
    "average over ranks": AveragesOverRanks,
    "average over micro-steps": AveragesOverMicroSteps,
}


def drawn(name: str, shape: Sequence[int]) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    values = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * 0.3
    return values + 1 if name == "norm.weight" else values


def make_model(case: Case) -> Net:
    """On meta, except what `load` never fills: a frozen parameter, a buffer."""
    sizes = WIDE if case.wide else {}
    if not case.meta:
        return Net(dropout=case.dropout, checkpointed=case.checkpointed, **sizes)
    net = meta_net(dropout=case.dropout, checkpointed=case.checkpointed, **sizes)
    net.frozen = nn.Parameter(torch.linspace(-1, 1, len(net.frozen)), requires_grad=False)
    net.waves = torch.linspace(0, 1, len(net.frozen))
    return net


def meta_net(**settings: Any) -> Net:
    with torch.device("meta"):
        return Net(**settings)


def drawn_sizes() -> list[int]:
    """Elements of each trained parameter."""
    return [p.numel() for p in meta_net().parameters() if p.requires_grad]


def make_optimizer(kind: str, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Two groups by `ndim`, one with a learning rate of its own."""
    named = list(named)
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    if kind == "muon":
        muon = {"use_muon": True, "momentum": 0.9}
        adamw = {"use_muon": False, "betas": (0.9, 0.95), "eps": 1e-8}
        return Muon([groups[0] | muon, groups[1] | adamw])
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, fused=True)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9 if kind == "momentum" else 0.0)


def learning_rate(kind: str) -> float:
    return {"adamw": 1e-3, "muon": 0.01}.get(kind, 0.1)


def make_engine(world: World, case: Case, timeout_s: float = 60.0) -> Engine:
    precision = PrecisionSection(kind=case.precision, accumulate_in=case.accumulate_in)
    make: Callable[..., Any] = lambda named: make_optimizer(case.optimizer, named)  # noqa: E731
    clip = 1.0 if case.optimizer in ("adamw", "muon") else 0.0
    if case.engine == "plain":
        return PlainEngine(
            lambda: make_model(case),
            make,
            device=world.device,
            precision=precision,
            max_grad_norm=clip,
        )
    if case.engine == "canonical":
        return canonical.CanonicalEngine(
            lambda: make_model(case),
            make,
            world=world,
            engine=CanonicalEngine(kind="canonical", bucket_elements=1000),
            precision=precision,
            max_grad_norm=clip,
            num_shards=case.micro_steps * world.place.world_size,
        )
    return FAULTS[case.fault](
        lambda: make_model(case),
        make,
        world=world,
        engine=section(case.engine, **dict(case.changes)),
        precision=precision,
        optimizer=optimizer_section(case.optimizer, clip),
        micro_batch_size=1,
        gradient_accumulation_steps=case.micro_steps,
        timeout_s=timeout_s,
    )


def section(stage: int, **changes: Any) -> EngineSection:
    """Buckets so small that every path through them is taken."""
    values: dict[str, Any] = {
        "kind": "deepspeed",
        "stage": stage,
        "offload_optimizer": "none",
        "offload_parameters": "none",
        "nvme_path": None,
        "overlap_communication": False,
        "reduce_scatter": True,
        "bucket_elements": 500,
        "prefetch_elements": 300,
        "persistence_threshold_elements": 25,
    }
    return EngineSection(**values | changes)


def optimizer_section(kind: str, max_grad_norm: float) -> AdamW | Sgd:
    common = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": max_grad_norm}
    if kind == "adamw":
        return AdamW(kind="adamw", beta1=0.9, beta2=0.95, eps=1e-8, **common)
    return Sgd(kind="sgd", momentum=0.9 if kind == "momentum" else 0.0, **common)


def rows(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes: (ROWS, LENGTH) twice. Row 5 has no terms in odd steps."""
    draw = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw)
    for row in range(ROWS):
        labels[row, : (row * 5 + step) % LENGTH] = IGNORED
    if step % 2:
        labels[5] = IGNORED
    return inputs, labels


def loss_sum(logits_RTV: torch.Tensor, labels_RT: torch.Tensor) -> torch.Tensor:
    flat = logits_RTV.float().reshape(-1, VOCABULARY)
    return F.cross_entropy(flat, labels_RT.reshape(-1), ignore_index=IGNORED, reduction="sum")


def train_step(world: World, engine: Engine, case: Case, step: int) -> tuple[float, float]:
    """The step's loss over all ranks and its gradient norm."""
    alone = case.engine == "plain"
    rank, size = (0, 1) if alone else (world.place.rank, world.place.world_size)
    inputs, labels = rows(step)
    weight = int((labels != IGNORED).sum())
    per = -(-ROWS // (size * case.micro_steps))
    absent = per * size * case.micro_steps - ROWS  # rows that no rank needs: no terms
    inputs = F.pad(inputs, (0, 0, 0, absent))
    labels = F.pad(labels, (0, 0, 0, absent), value=IGNORED)
    total = 0.0
    for micro_step in range(case.micro_steps):
        first = (micro_step * size + rank) * per
        torch.manual_seed(step * 100 + micro_step * 10 + rank)
        logits = engine.model(inputs[first : first + per])
        loss = loss_sum(logits, labels[first : first + per]) / weight
        engine.accumulate(loss, last=micro_step == case.micro_steps - 1)
        total += loss.item()
    stats = engine.step(lr=learning_rate(case.optimizer))
    assert stats.applied
    return (total if alone else world.sum([total])[0]), stats.grad_norm


def run(world: World, case: Case, source: FragmentSource | None = None, first: int = 1) -> Result:
    """Train from `source` (default: drawn values) at step `first - 1`, as a loop would."""
    engine = make_engine(world, case)
    engine.load(source or Drawn(), step=first - 1)
    said = [train_step(world, engine, case, s) for s in range(first, first + case.steps)]
    held = held_by(engine)
    engine.close()
    return Result([loss for loss, _ in said], [norm for _, norm in said], held)


def run_all(world: World, cases: Sequence[Case]) -> list[Result]:
    return [run(world, case) for case in cases]


def resume_all(world: World, wanted: Sequence[tuple[Case, Tensors, int]]) -> list[list[Any]]:
    """For each case: the fragments just after loading `step`, then the result of training on."""
    results = []
    for case, tensors, step in wanted:
        engine = make_engine(world, case)
        engine.load(Held(tensors), step=step)
        loaded = held_by(engine)
        engine.close()
        results.append([loaded, run(world, case, Held(tensors), step + 1)])
    return results


def poison_all(world: World, wanted: Sequence[Case]) -> list[tuple[float, bool]]:
    """For each case a step whose loss is not a number: its norm, and whether the state stayed."""
    results = []
    for case in wanted:
        engine = make_engine(world, case)
        engine.load(Drawn(), step=0)
        before = held_by(engine)
        loss = loss_sum(engine.model(rows(1)[0]), rows(1)[1])
        engine.accumulate(loss * torch.nan, last=True)
        norm = engine.step(lr=0.1).grad_norm
        after = held_by(engine)
        same = all(torch.equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))
        # and the next, good step is not disturbed by what the bad one left behind
        good = train_step(world, engine, case, 1)[1]
        engine.close()
        results.append((norm, same and good == run(world, case).norms[0]))
    return results


def weights_held(world: World) -> tuple[int, list[tuple[int, ...]]]:
    """Of a stage 3 engine: elements of trained weights on this rank between steps, and the shapes
    of gathered weights that a forward keeps for its backward."""
    engine = make_engine(world, Case(engine=3))
    engine.load(Drawn(), step=0)
    trained: list[Any] = [p for p in engine.model.parameters() if p.requires_grad]
    resident = sum(p.ds_tensor.numel() + p.numel() for p in trained)
    kept: list[tuple[int, ...]] = []

    def pack(saved: torch.Tensor) -> torch.Tensor:
        if not isinstance(saved, nn.Parameter) and isinstance(saved._base, nn.Parameter):
            kept.append(tuple(saved.shape))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        engine.model(rows(1)[0])
    engine.close()
    return resident, kept


def group_timeouts(world: World, wanted: Case, seconds: float) -> set[float]:
    """The time-outs of the groups that building an engine makes, in seconds."""
    before = set(dist.distributed_c10d._world.pg_map)
    make_engine(world, wanted, timeout_s=seconds)
    made = set(dist.distributed_c10d._world.pg_map) - before
    cpu = torch.device("cpu")
    return {g._get_backend(cpu).options._timeout.total_seconds() for g in made}


def held_by(engine: Engine) -> list[tuple[Fragment, torch.Tensor]]:
    return [(h.fragment, h.values.clone()) for h in engine.fragments()]


def whole(parts: Iterable[tuple[Fragment, torch.Tensor]]) -> Tensors:
    """Put all ranks' fragments together; each element must be there exactly once."""
    tensors: Tensors = {}
    for fragment, values in parts:
        key = fragment.name, fragment.kind
        size = torch.Size(fragment.shape).numel()
        tensor = tensors.setdefault(key, torch.full((size,), torch.nan))
        assert values.dtype == torch.float32
        assert values.shape == (fragment.length,)
        assert fragment.length, f"{fragment} is empty"
        assert tensor[fragment.start : fragment.stop].isnan().all(), f"{fragment} is held twice"
        tensor[fragment.start : fragment.stop] = values
    for key, tensor in tensors.items():
        assert not tensor.isnan().any(), f"nobody holds all of {key}"
    return tensors


def independent(steps: int, optimizer: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Plain PyTorch with none of our code: every step one batch, its mean loss over terms."""
    net = Net()
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    for name, p in named:
        p.data = drawn(name, p.shape)
    trainer = make_optimizer(optimizer, named)
    for group in trainer.param_groups:
        group["lr"] = learning_rate(optimizer) * group.get("lr_scale", 1.0)
    losses = []
    for step in range(1, steps + 1):
        inputs, labels = rows(step)
        logits = net(inputs).reshape(-1, VOCABULARY)
        loss = F.cross_entropy(logits, labels.reshape(-1), ignore_index=IGNORED)
        loss.backward()
        if optimizer == "adamw":
            nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        trainer.step()
        trainer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach().view(-1) for name, p in named}
