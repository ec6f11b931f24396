"""Checkpoints as other people's programs write them, and what their optimizer held just then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainer.dist.world import World

VOCABULARY, WIDTH, INNER = 37, 13, 22  # every shard is padded on 2 ranks
MOMENTS = ("exp_avg", "exp_avg_sq")
RATE, BETAS, EPS = 0.01, (0.9, 0.95), 1e-8
Tensors = dict[tuple[str, str], torch.Tensor]  # (name, kind) -> whole tensor, flat


class SmallNet(nn.Module):
    """Two parameter groups, odd sizes, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, INNER)
        self.norm = nn.LayerNorm(INNER)
        self.head = nn.Linear(INNER, VOCABULARY, bias=False)

    def forward(self, inputs_RT: torch.Tensor) -> torch.Tensor:
        logits_RTV: torch.Tensor = self.head(self.norm(F.gelu(self.up(self.embed(inputs_RT)))))
        return logits_RTV


def groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """The same rows on every rank: the mean over ranks is then what one rank would see."""
    generator = torch.Generator().manual_seed(step)
    tokens_RT = torch.randint(VOCABULARY, (4, 9), generator=generator)
    logits_RTV = model(tokens_RT[:, :-1])
    return F.cross_entropy(logits_RTV.float().flatten(0, 1), tokens_RT[:, 1:].flatten())


def train_with_deepspeed(
    world: World, folder: str, stage: int, steps: int, kind: str
) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """Train, save to `folder`, go one step further. What was held at the save; weights after it."""
    import deepspeed

    if world.place.world_size == 1:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = SmallNet()
    optimizer = torch.optim.AdamW(groups(model), lr=RATE, betas=BETAS, eps=EPS)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
        "gradient_clipping": 0.0,
    }
    if kind == "bf16":
        config["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def one(step: int) -> None:
        loss = loss_of(engine, step)
        engine.backward(loss)
        engine.step()

    for step in range(1, steps + 1):
        one(step)
    held = _held_by_deepspeed(engine, stage)
    engine.save_checkpoint(folder, client_state={"seen": 12})
    one(steps + 1)
    after = _held_by_deepspeed(engine, stage)
    return held, {name: value for (name, kind), value in after.items() if kind == "master"}


def _held_by_deepspeed(engine: Any, stage: int) -> Tensors:
    """Out of its live optimizer; collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    names = {p: name for name, p in engine.module.named_parameters()}
    held: Tensors = {}
    if stage == 3:
        for p, name in names.items():
            held[name, "master"] = _whole(safe_get_full_fp32_param(p))
            for moment in MOMENTS:
                held[name, moment] = _whole(safe_get_full_optimizer_state(p, moment))
        return held
    zero = engine.optimizer
    for flat, owned in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        state = zero.optimizer.state[flat]
        for kind, mine in {"master": flat, **{m: state[m] for m in MOMENTS}}.items():
            parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, mine.detach().contiguous())
            whole, at = torch.cat(parts), 0
            for p in owned:
                held[names[p], kind] = _whole(whole[at : at + p.numel()])
                at += p.numel()
    return held


def train_with_dcp(
    world: World, folder: str, steps: int
) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """Two ranks with every tensor cut in rows by FSDP, saved by torch's own checkpoints."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = SmallNet()
    if world.place.world_size > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world.place.world_size,)))
    optimizer = torch.optim.AdamW(groups(model), lr=RATE, betas=BETAS, eps=EPS)

    def one(step: int) -> None:
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    for step in range(1, steps + 1):
        one(step)
    weights, moments = get_state_dict(model, optimizer)
    held: Tensors = {}
    for name, p in model.named_parameters():
        held[name, "master"] = _whole(p)
        for moment in MOMENTS:
            held[name, moment] = _whole(optimizer.state[p][moment])
    saved = {"model": weights, "optim": moments, "step": steps}
    dcp.save(  # type: ignore[attr-defined]
        saved, checkpoint_id=Path(folder), no_dist=world.place.world_size == 1
    )
    one(steps + 1)
    return held, {name: _whole(p) for name, p in model.named_parameters()}


def _whole(value: Any) -> torch.Tensor:
    whole = value.full_tensor() if hasattr(value, "full_tensor") else value
    flat: torch.Tensor = whole.detach().float().clone().reshape(-1)
    return flat
