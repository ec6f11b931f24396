"""What a state in memory costs at every step: how long training stands still, and how much slower.

    python -m benchmarks.peer [--params 10_000_000] [--folder /dev/shm] [--rounds 6] [--json out]

Ranks (gloo, one thread each) that hold an even share of so many parameters and two moments, fp32.
A step is arithmetic of about --step-ms and the step's one collective. Arms take turns, some steps
each: no memory tier; states of one node; two nodes on this machine, each state sent to the other:
at every step, and as often as `checkpoint.peer.every=auto` chooses, which promises 1 % in the mean.
`stall` is what `keep` takes, the slowest rank's; `ratio` a step's wall time to that without, within
a round. With as many ranks as cores, the processes beside them take time from the ranks: what the
ratio shows beyond the stall is that, and goes with a spare core. Three minutes when quiet: rounds x
steps x five arms x --step-ms, and until every `auto` has chosen; a line a round says how far it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

ARMS: dict[str, tuple[int, Any]] = {  # ranks a node (0: nothing is kept), every so many steps
    "none": (0, 1),
    "one node": (2, 1),
    "two nodes": (1, 1),
    "one, auto": (2, "auto"),
    "two, auto": (1, "auto"),
}
_UNTIL_CHOSEN, _UNTIL_ROOM = 28, 4  # steps


def main() -> None:
    given = _parser().parse_args()
    if "RANK" in os.environ:
        _be_rank(given)
        return
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-", dir=given.folder) as scratch:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [sys.executable, "-m", "benchmarks.peer", *sys.argv[1:], "--scratch", scratch]
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        ranks = [
            subprocess.Popen(argv, env=os.environ | place | {"RANK": f"{r}", "LOCAL_RANK": f"{r}"})
            for r in range(2)
        ]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
        try:
            codes = [rank.wait() for rank in ranks]
        finally:  # what they keep in memory goes with this folder
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(codes):
            raise SystemExit("a rank failed; see above")
        result = json.loads((Path(scratch) / "result.json").read_text())
    print(table(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['state_bytes'] / 1e6:.0f} MB of state over 2 ranks, {result['rounds']} rounds of "
        f"{result['steps']} steps, load {result['load']:.1f}, {os.cpu_count()} cores",
        f"{'':12}{'step ms':>9}{'ratio':>8}{'mean':>8}{'range':>16}{'stall ms':>10}{'of it':>8}",
    ]
    for name, row in result["arms"].items():
        span = f"{row['low']:.3f} .. {row['high']:.3f}"
        lines.append(
            f"{name:12}{row['step_ms']:>9.1f}{row['ratio']:>8.3f}{row['mean']:>8.3f}{span:>16}"
            f"{row['stall_ms']:>10.2f}{row['stall_ms'] / row['step_ms']:>8.2%}  {row['note']}"
        )
    return "\n".join(lines)


# --- in a rank ------------------------------------------------------------------------------------


def _be_rank(given: argparse.Namespace) -> None:
    import torch

    from trainer.checkpoint.peer.tier import Peers
    from trainer.checkpoint.store import CheckpointStore
    from trainer.dist.world import Place, leave, meet
    from trainer.records.memory_files import MemoryFiles

    torch.set_num_threads(1)
    world = meet(Place.from_env(), device=torch.device("cpu"), timeout_s=600.0)
    engine: Any = _Share(given.params, world.place.rank, world.place.world_size)
    stores = {}
    for name, (per_node, every) in ARMS.items():
        folder = Path(given.scratch) / name.replace(" ", "-")
        files = MemoryFiles(folder / f"host-{world.place.rank if per_node == 1 else 0}", "bench")
        files.folder.mkdir(parents=True, exist_ok=True)
        peers = Peers(every=every, files=files, ranks_per_node=per_node) if per_node else None
        stores[name] = CheckpointStore(folder / "run" / "checkpoints", run_hash="b", peers=peers)
        stores[name].prepare(world, engine)
    arms = [_Arm(world, engine, store) for store in stores.values()]
    work, step = _Work(given.step_ms), 0
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ARMS}
    began = time.monotonic()
    for number in range(given.rounds + 1):
        for name, arm in zip(ARMS, arms, strict=True):
            steps = given.steps
            if not number:
                steps = _UNTIL_CHOSEN if ARMS[name][1] == "auto" else _UNTIL_ROOM
            found = arm.turn(work, range(step + 1, step + steps + 1))
            step += steps
            if number:  # the first round makes room, and chooses
                seen[name].append(found)
        if world.place.rank == 0:
            passed = time.monotonic() - began
            print(f"round {number} of {given.rounds}: {passed:.0f} s", file=sys.stderr, flush=True)
    notes = {name: store.memory_note for name, store in stores.items()}
    for store in stores.values():
        store.close()
    if world.place.rank == 0:
        result = _summary(seen, given, notes) | {"state_bytes": 3 * 4 * given.params}
        (Path(given.scratch) / "result.json").write_text(json.dumps(result))
    leave(world)


class _Arm:
    """One way to train."""

    def __init__(self, world: Any, engine: Any, store: Any) -> None:
        self._world = world
        self._engine = engine
        self._store = store

    def turn(self, work: _Work, steps: range) -> tuple[float, float, float]:
        """(seconds a step, median stall, share of steps kept), the slowest rank's."""
        stalls, began = [], time.perf_counter()
        before = self._dropped()
        for step in steps:
            work.step()
            told = self._world.sum(list(self._store.said()))
            at = time.perf_counter()
            self._store.keep(
                self._world,
                self._engine,
                step=step,
                told=(told[0], told[1]),
                training=lambda step=step: {"step": step},
            )
            stalls.append(time.perf_counter() - at)
        passed = (time.perf_counter() - began) / len(steps)
        lost = (self._dropped() - before) / len(steps)
        until = time.monotonic() + 10  # what is under way ends in nobody else's turn
        while self._is_busy() and time.monotonic() < until:
            time.sleep(0.01)
        step_s, stall_s, lost = self._world.max([passed, statistics.median(stalls), lost])
        return step_s, stall_s, 1.0 - lost if self._store._memory else 0.0

    def _is_busy(self) -> bool:
        memory = self._store._memory
        return (
            memory is not None
            and memory.saves._under_way is not None
            and self._store.said() == (0.0, 0.0)
        )

    def _dropped(self) -> int:
        memory = self._store._memory
        return memory.saves.dropped if memory is not None else 0


def _summary(
    seen: dict[str, list[tuple[float, float, float]]],
    given: argparse.Namespace,
    notes: dict[str, str],
) -> dict[str, Any]:
    arms = {}
    for name, rounds in seen.items():
        ratios = [one[0] / none[0] for one, none in zip(rounds, seen["none"], strict=True)]
        arms[name] = {
            "step_ms": 1e3 * statistics.median(one[0] for one in rounds),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
            "stall_ms": 1e3 * statistics.median(one[1] for one in rounds),
            "mean": sum(one[0] for one in rounds) / sum(none[0] for none in seen["none"]),
            "kept": statistics.median(one[2] for one in rounds),
            "note": notes[name],
        }
    load = os.getloadavg()[0]
    return {"arms": arms, "rounds": given.rounds, "steps": given.steps, "load": load}


class _Work:
    """Arithmetic of one thread that takes so many milliseconds on this machine when it is quiet."""

    def __init__(self, milliseconds: float) -> None:
        import torch

        self._matrix = torch.randn(384, 384)
        best = min(self._timed() for _ in range(20))
        self._times = max(1, round(milliseconds / 1e3 / best))

    def step(self) -> None:
        for _ in range(self._times):
            self._matrix @ self._matrix

    def _timed(self) -> float:
        began = time.perf_counter()
        self._matrix @ self._matrix
        return time.perf_counter() - began


class _Share:
    """Only what checkpoints need of an engine: 24 tensors and their moments, cut evenly."""

    def __init__(self, params: int, rank: int, ranks: int) -> None:
        import torch

        self.device = torch.device("cpu")
        each = params // 24
        self._layout = [(f"layers.{i}.weight", (each,)) for i in range(24)]
        share = -(-each // ranks)
        self._bounds = (min(rank * share, each), min((rank + 1) * share, each))
        size = self._bounds[1] - self._bounds[0]
        self._values = [[torch.randn(size) for _ in range(3)] for _ in self._layout]

    def fragments(self) -> Iterator[Any]:
        from trainer.engine.base import HeldFragment
        from trainer.records.fragment import Fragment

        for (name, shape), values in zip(self._layout, self._values, strict=True):
            for kind, one in zip(("master", "exp_avg", "exp_avg_sq"), values, strict=True):
                yield HeldFragment(Fragment(name, kind, shape, *self._bounds), one)

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return self._layout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("--params", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--step-ms", type=float, default=400.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", default="", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
