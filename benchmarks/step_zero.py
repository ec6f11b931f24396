"""One optimizer step on two ranks: ours under ZeRO-2 against Hugging Face's Trainer + DeepSpeed.

    python -m benchmarks.step_zero                       about two minutes
    python -m benchmarks.step_zero --accumulate 2

Same rows, starting values, precision (bf16 weights, fp32 masters), clipping and accumulation; gloo,
one thread a rank. CPU seconds are summed over the ranks, wall is the slowest rank's. Promised: ours
at least 1.05 of HF Trainer + DeepSpeed as people configure it, 1.00 of its best settings; judged by
`--clock` (wall on a quiet machine: a rank also waits for the other).

As people configure it: the ZeRO-2 file of Hugging Face's own documentation, values "auto". One line
is changed: `torch_adam`, because DeepSpeed's AdamW compiles C++ at first use, minutes on a CPU.
Best: torch's fused AdamW made by the Trainer, and what suits ZeRO-2 on CPUs (no overlap, large
buckets; not a search).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.paired import (
    CLOCKS,
    Clock,
    Seconds,
    in_turns,
    judged,
    machine,
    speedup,
    timed,
    write_result,
)
from benchmarks.step_arms import Arm, HfTrainer, Ours, check_peers, rows_of, starting_tensors
from benchmarks.step_setup import SHAPES, gemm_peak, hf_model, make_store, plan_of
from trainer.dist.world import Place, World, meet

RANKS = 2
USUAL = {
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {
            "lr": "auto",
            "betas": "auto",
            "eps": "auto",
            "weight_decay": "auto",
            "torch_adam": True,
        },
    },
    "zero_optimization": {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
PROMISED = {"HF + DeepSpeed, usual": 1.05, "HF + DeepSpeed, best": 1.00}
OURS = "ours, zero2"
LOSSES_WITHIN = 5e-3  # bf16 weights, another order of sums, few steps


def best_settings(bucket: int) -> dict[str, Any]:
    found = copy.deepcopy(USUAL)
    del found["optimizer"]
    found["zero_allow_untested_optimizer"] = True
    found["zero_force_ds_cpu_optimizer"] = False
    found["steps_per_print"] = None
    found["zero_optimization"] |= {
        "overlap_comm": False,
        "allgather_bucket_size": bucket,
        "reduce_bucket_size": bucket,
    }
    return found


def main() -> int:
    given = _arguments()
    check_peers()
    if "RANK" in os.environ:
        return _rank(given)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        common = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"LONGHAUL_BENCH_FOLDER": folder, "TORCH_EXTENSIONS_DIR": f"{folder}/ops"}
        command = [sys.executable, "-m", "benchmarks.step_zero", *sys.argv[1:]]
        ranks = [
            subprocess.Popen(
                command, env=os.environ | common | {"RANK": str(r), "LOCAL_RANK": str(r)}
            )
            for r in range(RANKS)
        ]
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return max(abs(code) for code in codes)


def _rank(given: Any) -> int:
    torch.set_num_threads(1)
    before = machine()
    place = Place.from_env()
    world = meet(place, device=torch.device("cpu"), timeout_s=300.0)
    bench = Bench(world, given)
    arms = bench.arms()
    if place.rank == 0:
        print("arms are built", flush=True)
    peak = world.sum([gemm_peak(torch.bfloat16)])[0]
    steps = {name: partial(together, world, arm.step) for name, arm in arms.items()}
    times = in_turns(steps, given.rounds, warm=given.warm)
    losses = {name: arm.losses for name, arm in arms.items()}
    for arm in arms.values():
        arm.close()
    everybody = [json.loads(t) for t in world.gather(json.dumps(losses))]
    kept = True
    if place.rank == 0:
        result = {
            "benchmark": "step_zero",
            "settings": {k: str(v) for k, v in vars(given).items()},
            "machine": before | {"load_average_after": os.getloadavg()},
            "bf16_gemm_flops_all_ranks": peak,
            "flops_per_token": bench.flops_per_token,
            "tokens_per_step": bench.tokens,
            "losses": _whole_losses(everybody),
            "seconds": times,
            "speedup_of_ours": {
                c: {n: speedup(times, OURS, over=n, clock=c) for n in times} for c in CLOCKS
            },
        }
        kept = show(result, clock=given.clock)
        if given.json:
            write_result(given.json, result)
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0 if kept else 1)  # vendors' exit handlers may wait for each other


def together(world: World, step: Callable[[], None]) -> Seconds:
    """All ranks begin at once. CPU of all ranks, wall of the slowest; the same on all."""
    world.sum([0.0])
    mine = timed(step)
    return Seconds(world.max([mine.wall])[0], world.sum([mine.cpu])[0])


class Bench:
    """Collective."""

    def __init__(self, world: World, given: Any) -> None:
        self._world, self._given = world, given
        self._shape = SHAPES[given.shape]
        self._folder = Path(os.environ["LONGHAUL_BENCH_FOLDER"])
        num_steps = given.rounds + given.warm + 2
        per_step = self._shape.rows * given.accumulate * RANKS
        self._store = make_store(
            self._folder / f"store-{world.place.rank}",  # one a rank: nothing to wait for
            self._shape,
            rows=num_steps * per_step,
            document_tokens=given.document_tokens,
        )
        self._overrides = [
            f"batch.global_batch_size={per_step}",
            "engine=zero2",
            "precision=bf16",
            "precision.accumulate_in=weights",  # as the peers add up micro-batches; ours: fp32
        ]
        plan = self._plan("")
        self.flops_per_token, self.tokens = plan.flops_per_token, plan.tokens_per_step
        self._ours = Ours(plan, world, self._folder / "ours")
        self._values = starting_tensors(plan, self._ours.job)
        self._rows = rows_of(
            plan, world, num_steps=num_steps, positions=bool(given.document_tokens)
        )

    def arms(self) -> dict[str, Arm]:
        table: dict[str, Callable[[], Arm]] = {
            OURS: lambda: self._ours,
            "HF + DeepSpeed, usual": lambda: self._trainer(USUAL),
            "HF + DeepSpeed, best": lambda: self._trainer(
                best_settings(self._given.bucket),
                logging_nan_inf_filter=False,
                dataloader_pin_memory=False,
                logging_steps=10**6,
            ),
        }
        only = self._given.arms.split(";") if self._given.arms else list(table)
        found = {n: make() for n, make in table.items() if n in only or n == OURS}
        exact = ["precision.accumulate_in=fp32"] if self._given.accumulate > 1 else []
        for overrides in [*exact, *self._given.variant]:
            folder = self._folder / f"variant-{len(found)}"
            found[overrides] = Ours(self._plan(overrides), self._world, folder)
        return found

    def _plan(self, overrides: str) -> Any:
        every = [*self._overrides, *overrides.split()]
        return plan_of(self._folder, self._shape, self._store, every, ranks=RANKS)

    def _trainer(self, settings: dict[str, Any], **arguments: Any) -> Arm:
        return HfTrainer(
            hf_model(self._shape, self._values),
            self._rows,
            self._folder / "hf",
            per_device_train_batch_size=self._shape.rows,
            gradient_accumulation_steps=self._given.accumulate,
            deepspeed=copy.deepcopy(settings),
            **arguments,
        )


def _whole_losses(ranks: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Ours are already of all ranks; a Trainer's are the rank's own."""
    found = {name: values for name, values in ranks[0].items() if name not in PROMISED}
    for name in ranks[0]:
        if name in PROMISED:
            found[name] = [sum(v) / RANKS for v in zip(*(r[name] for r in ranks), strict=True)]
    return found


def show(result: dict[str, Any], *, clock: Clock) -> bool:
    """Print the table; whether what is promised of the arms in it was kept."""
    facts, times, losses = result["machine"], result["seconds"], result["losses"]
    peak = result["bf16_gemm_flops_all_ranks"]
    print(f"{facts['cpu']}, {RANKS} ranks x 1 thread, load {facts['load_average']}")
    print(f"bf16 GEMM {peak / 1e9:.0f} GFLOP/s, {result['tokens_per_step']} tokens a step")
    print(
        f"{'arm':<24}{'CPU ms':>8}{'wall ms':>9}{'tok/s':>8}{'peak':>6}   ours, CPU    ours, wall"
    )
    for name, seconds in times.items():
        cpu, wall = (sorted(getattr(s, c) for s in seconds)[len(seconds) // 2] for c in CLOCKS)
        rate = result["tokens_per_step"] / wall
        share = rate * result["flops_per_token"] / peak
        ratios = [result["speedup_of_ours"][c][name] for c in CLOCKS]
        said = "  ".join(f"{r.median:.3f} [{r.low:.3f} {r.high:.3f}]" for r in ratios)
        print(f"{name:<24}{cpu * 1e3:>8.1f}{wall * 1e3:>9.1f}{rate:>8.0f}{share:>6.0%}   {said}")
    count = min(len(values) for values in losses.values())
    apart = {
        name: max(abs(a - b) for a, b in zip(values[:count], losses[OURS][:count], strict=True))
        for name, values in losses.items()
    }
    said = ", ".join(f"{name} {x:.1e}" for name, x in apart.items())
    print(f"losses over {count} steps, at most this far from ours ({losses[OURS][-1]:.4f}): {said}")
    kept = max(apart.values()) < LOSSES_WITHIN
    by_clock = result["speedup_of_ours"][clock]
    for name, promised in PROMISED.items():
        if name in times:
            kept &= judged(f"ours over {name}", by_clock[name], promised=promised)
    return kept


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="base")
    parser.add_argument("--document-tokens", type=int, default=0)
    parser.add_argument(
        "--variant", action="append", default=[], help="one more arm: overrides of our plan"
    )
    parser.add_argument("--bucket", type=int, default=50_000_000, help="of the best settings")
    parser.add_argument("--arms", default="", help="some of them, with ; between")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="judged by")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
