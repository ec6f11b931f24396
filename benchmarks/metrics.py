"""What a step pays for 50 numbers told to every observer, beside logging in the loop itself.

    python -m benchmarks.metrics --rounds 9

A round is a stretch of steps, each a product of matrices of about 20 ms. Arms: `none` tells
nobody; `ours` tells metrics.jsonl, the console, TensorBoard and W&B (offline) through the doors of
the loop, 50 numbers a step; `in the loop` is what people write: `wandb.log` and a scalar after
another of torch's SummaryWriter. All of a step's wall time counts, and so what threads beside it
take from it.

Exit code 1: ours costs more than 100 us a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.paired import machine, write_result
from trainer.observers.aside import Aside
from trainer.observers.base import Observer
from trainer.observers.console import make_console
from trainer.observers.guarded import Guarded
from trainer.observers.jsonl import JsonLines
from trainer.observers.tensorboard import TensorBoard
from trainer.observers.wandb import Wandb
from trainer.records.redact import redactor_of
from trainer.reports import EvalReport

PROMISED_US = 100.0
NUMBERS = 50
Tell = Callable[[int], None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as folder, _arms(Path(folder)) as to:
        times = _in_turns(to, rounds=given.rounds, steps=given.steps)
    costs = {
        arm: statistics.median(a - b for a, b in zip(found, times["none"], strict=True))
        for arm, found in times.items()
    }
    for arm, found in times.items():
        told = f"{costs[arm] * 1e6:,.0f} us of it for {NUMBERS} numbers"
        print(f"{arm}: {statistics.median(found) * 1e3:.2f} ms a step, {told}")
    kept = costs["ours"] * 1e6 <= PROMISED_US
    print(f"ours: at most {PROMISED_US:.0f} us: {'kept' if kept else 'NOT KEPT'}")
    if given.json:
        write_result(given.json, {"machine": machine(), "times": times, "costs": costs})
    return 0 if kept else 1


def _in_turns(arms: Mapping[str, Tell], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Medians of a round's steps, in seconds. The first round is warming up."""
    weights = torch.randn(1024, 1024)
    found: dict[str, list[float]] = {name: [] for name in arms}
    number = 0
    for turn in range(rounds + 1):
        for name in list(arms) if turn % 2 else list(arms)[::-1]:
            took = []
            for _ in range(steps):
                number += 1
                began = time.perf_counter()
                weights @ weights
                arms[name](number)
                took.append(time.perf_counter() - began)
            if turn:
                found[name].append(statistics.median(took))
    return found


@contextlib.contextmanager
def _arms(folder: Path) -> Iterator[dict[str, Tell]]:
    with contextlib.ExitStack() as closing, _no_server():
        ours = _observers(folder, closing)
        looped = _in_the_loop(folder, closing)
        yield {
            "none": lambda step: None,
            "ours": partial(_tell, ours),
            "in the loop": looped,
        }


def _tell(observers: Sequence[Observer], step: int) -> None:
    report = EvalReport(step=step, values=_values(step), seconds=0.0)
    for one in observers:
        one.on_eval(report)


def _values(step: int) -> dict[str, float]:
    return {f"value_{n}": step / (n + 1) for n in range(NUMBERS)}


def _observers(folder: Path, closing: contextlib.ExitStack) -> list[Observer]:
    out = (folder / "console.txt").open("w")
    closing.callback(out.close)
    tracked = partial(
        Wandb,
        folder / "ours" / "wandb",
        mode="offline",
        run_id="ours",
        name="ours",
        project="bench",
        entity=None,
        tags=(),
        attempt=1,
        config={},
        redactor=redactor_of(os.environ),
    )
    slow: dict[str, Callable[[], Observer]] = {
        "tensorboard": partial(TensorBoard, folder / "ours" / "tensorboard"),
        "wandb": tracked,
    }
    made: list[Observer] = [
        JsonLines(folder / "ours" / "metrics.jsonl", attempt=1, attempt_facts={}),
        make_console(name="ours", first_step=1, total_steps=10**6, headline="ours", out=out),
        *(Aside(name, partial(Guarded, name, make), close_s=60) for name, make in slow.items()),
    ]
    for one in made:
        closing.callback(one.close)
    return made


def _in_the_loop(folder: Path, closing: contextlib.ExitStack) -> Tell:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

    run = wandb.init(
        mode="offline", dir=str(folder), project="bench", id="loop", reinit="create_new"
    )
    closing.callback(run.finish)
    writer = SummaryWriter(str(folder / "loop"))
    closing.callback(writer.close)

    def tell(step: int) -> None:
        values = _values(step)
        run.log(values)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return tell


@contextlib.contextmanager
def _no_server() -> Iterator[None]:
    """W&B's service asks nobody."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    yield


if __name__ == "__main__":
    raise SystemExit(main())
