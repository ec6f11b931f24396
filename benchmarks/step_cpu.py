"""One optimizer step in one process: ours against a bare loop and Hugging Face's Trainer.

    python -m benchmarks.step_cpu                        about two minutes
    python -m benchmarks.step_cpu --accumulate 2
    python -m benchmarks.step_cpu --compile              compiled arms; compiling takes minutes
    python -m benchmarks.step_cpu --shape tiny --rounds 200      what is not the model

Same rows, starting values, optimizer, clipping and accumulation; one thread. Promised, judged by
`--clock`: ours at least 0.99 of the bare loop in the same arithmetic, 1.1 compiled.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.paired import CLOCKS, Clock, in_turns, judged, machine, speedup, timed, write_result
from benchmarks.step_arms import (
    Arm,
    Bare,
    HfTrainer,
    Ours,
    check_peers,
    rows_of,
    starting_tensors,
)
from benchmarks.step_setup import SHAPES, Shape, gemm_peak, hf_model, make_store, plan_of
from trainer.dist.world import Alone

BASE = "bare loop"
PROMISED = {"ours, autocast": 0.99}
COMPILED = ("ours, autocast compiled", "ours, bf16 compiled")  # the better one:
PROMISED_COMPILED = 1.10
LOSSES_WITHIN = 2e-3  # bf16 arithmetic in another order, few steps


def main() -> int:
    given = _arguments()
    check_peers()
    torch.set_num_threads(1)
    shape = SHAPES[given.shape]
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), shape, given)
        arms = bench.arms()
        peaks = {"before": gemm_peak(torch.bfloat16)}
        steps = {name: partial(timed, arm.step) for name, arm in arms.items()}
        times = in_turns(steps, given.rounds, warm=given.warm)
        peaks["after"] = gemm_peak(torch.bfloat16)
        for arm in arms.values():
            arm.close()
    same = {name: arm.losses for name, arm in arms.items()}
    result = {
        "benchmark": "step_cpu",
        "settings": vars(given) | {"json": None},
        "machine": before | {"load_average_after": os.getloadavg()},
        "bf16_gemm_flops": peaks,
        "flops_per_token": bench.flops_per_token,
        "tokens_per_step": bench.tokens,
        "losses": same,
        "seconds": times,
        "speedup": {c: {n: speedup(times, n, over=BASE, clock=c) for n in times} for c in CLOCKS},
    }
    kept = show(result, clock=given.clock)
    if given.json:
        write_result(given.json, result)
    return 0 if kept else 1


class Bench:
    def __init__(self, folder: Path, shape: Shape, given: Any) -> None:
        self._folder, self._shape, self._given = folder, shape, given
        self._num_steps = given.rounds + given.warm + 2
        rows = self._num_steps * given.accumulate * shape.rows
        self._store = make_store(
            folder / "store", shape, rows=rows, document_tokens=given.document_tokens
        )
        plan = self._plan([])
        self.flops_per_token, self.tokens = plan.flops_per_token, plan.tokens_per_step
        first = Ours(plan, Alone(), folder / "first")
        self._values = starting_tensors(plan, first.job)
        first.close()
        self._rows = rows_of(
            plan, Alone(), num_steps=self._num_steps, positions=bool(given.document_tokens)
        )

    def arms(self) -> dict[str, Arm]:
        compiled = "model.compile=true"
        table: dict[str, Callable[[], Arm]] = {
            BASE: lambda: self._bare(),
            "ours, autocast": lambda: self._ours("precision=autocast"),
            "ours, bf16 weights": lambda: self._ours("precision=bf16"),
            "HF Trainer, defaults": lambda: self._trainer(),
            "HF Trainer, best": lambda: self._trainer(
                logging_nan_inf_filter=False, dataloader_pin_memory=False, logging_steps=10**6
            ),
        }
        if self._given.compile:
            table = {
                BASE: table[BASE],
                "bare loop, compiled": lambda: self._bare(compiled=True),
                "ours, autocast compiled": lambda: self._ours("precision=autocast", compiled),
                "ours, bf16 compiled": lambda: self._ours("precision=bf16", compiled),
                "HF Trainer, compiled": lambda: self._trainer(torch_compile=True),
            }
        only = self._given.arms.split(";") if self._given.arms else list(table)
        return {name: make() for name, make in table.items() if name in only or name == BASE}

    def _plan(self, overrides: list[str]) -> Any:
        rows = self._shape.rows * self._given.accumulate
        more = ["engine=plain", "precision=autocast", f"batch.global_batch_size={rows}"]
        return plan_of(self._folder, self._shape, self._store, [*more, *overrides], ranks=1)

    def _ours(self, *overrides: str) -> Arm:
        folder = self._folder / "-".join(overrides).replace("=", "-")
        return Ours(self._plan(list(overrides)), Alone(), folder)

    def _bare(self, *, compiled: bool = False) -> Arm:
        model = hf_model(self._shape, self._values)
        if compiled:
            model.compile()
        return Bare(model, self._rows, micro_rows=self._shape.rows, micro=self._given.accumulate)

    def _trainer(self, **arguments: Any) -> Arm:
        return HfTrainer(
            hf_model(self._shape, self._values),
            self._rows,
            self._folder / "hf",
            per_device_train_batch_size=self._shape.rows,
            gradient_accumulation_steps=self._given.accumulate,
            **arguments,
        )


def show(result: dict[str, Any], *, clock: Clock) -> bool:
    """Print the table; whether what is promised of the arms in it was kept."""
    times, losses = result["seconds"], result["losses"]
    peak = max(result["bf16_gemm_flops"].values())
    facts = result["machine"]
    print(f"{facts['cpu']}, 1 thread, load {facts['load_average']}, {facts['date']}")
    print(f"bf16 GEMM {peak / 1e9:.0f} GFLOP/s, {result['tokens_per_step']} tokens a step")
    print(f"{'arm':<26}{'CPU ms':>9}{'tok/s':>8}{'peak':>6}   by CPU time         by wall")
    for name, seconds in times.items():
        cpu = sorted(s.cpu for s in seconds)[len(seconds) // 2]
        rate = result["tokens_per_step"] / cpu
        share = rate * result["flops_per_token"] / peak
        ratios = [result["speedup"][c][name] for c in CLOCKS]
        said = "  ".join(f"{r.median:.3f} [{r.low:.3f} {r.high:.3f}]" for r in ratios)
        print(f"{name:<26}{cpu * 1e3:>9.1f}{rate:>8.0f}{share:>6.0%}   {said}")
    kept = _same_losses(losses)
    ratios = result["speedup"][clock]
    for name, promised in PROMISED.items():
        if name in ratios:
            kept &= judged(name, ratios[name], promised=promised)
    compiled = [(ratios[n].median, n) for n in COMPILED if n in ratios]
    if compiled:
        best = max(compiled)[1]
        kept &= judged(best, ratios[best], promised=PROMISED_COMPILED)
    return kept


def _same_losses(losses: dict[str, list[float]]) -> bool:
    count = min(len(values) for values in losses.values())
    base = losses[BASE][:count]
    apart = {n: max(abs(a - b) for a, b in zip(v, base)) for n, v in losses.items()}  # noqa: B905
    print(
        f"losses over {count} steps, at most this far from the bare loop's ({base[-1]:.4f} last):"
    )
    print("  " + ", ".join(f"{name} {x:.1e}" for name, x in apart.items()))
    return max(apart.values()) < LOSSES_WITHIN


def _arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="base")
    parser.add_argument(
        "--document-tokens", type=int, default=0, help="pack documents of this length into rows"
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--arms", default="", help="some of them, with ; between")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="judged by")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
