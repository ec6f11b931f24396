"""Checkpoints against what people use: stall, time to DURABLE, time to load, in one run.

    python -m benchmarks.checkpoint --folder /a/folder/on/the/disk/under/test

State: about 100 M parameters with Adam, fp32 master and two moments, 1.24 GB over 2 ranks (gloo,
one thread each). A save's clock stops when its files and their folder are fsynced: a writer that
returns before is not done. Stall: how long the caller stood still. A load ends with all values in
live tensors; ours also checks every byte. `longhaul waiting` loads into another cut than was saved.
Ways take turns, in an order that rotates by one each round; seconds are the slowest rank's, and
ratios are taken within a round, so that a slow moment of the machine hits all of them alike. What
a stall has beyond a copy is held against copies right before and after it; the row `copy` has there
how far that can be believed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

_PAUSE_S = 0.5  # a mounted disk is told of freed blocks after the commit, by a thread of its own
FLOOR, COPY = "raw write", "copy"
Round = dict[str, dict[str, float]]


def main() -> None:
    given = _parser().parse_args()
    if "RANK" in os.environ:
        _be_rank(given)
        return
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-", dir=given.folder) as scratch:
        result = _run_ranks(given, Path(scratch))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


def _run_ranks(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "benchmarks.checkpoint", *sys.argv[1:], "--scratch", str(scratch)]
    place = {"WORLD_SIZE": given.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            argv,
            env=os.environ
            | {"RANK": str(r), "LOCAL_RANK": str(r)}
            | {k: str(v) for k, v in place.items()},
        )
        for r in range(given.ranks)
    ]
    try:
        codes = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}; see above")
    result: dict[str, Any] = json.loads((scratch / "result.json").read_text())
    return result


# --- in a rank -------------------------------------------------------------------------------


def _be_rank(given: argparse.Namespace) -> None:
    import torch

    from benchmarks.checkpoint_ways import make_ways
    from trainer.dist.world import Place, leave, meet

    torch.manual_seed(0)
    torch.set_num_threads(1)
    world = meet(Place.from_env(), device=torch.device("cpu"), timeout_s=600.0)
    ways, shard = make_ways(world, given.layers, only=given.ways.split(",") if given.ways else ())
    size = sum(world.sum([float(shard.num_bytes)]))
    rounds, names = [], list(ways)
    for number in range(given.rounds + 1):
        turn = number % len(names)
        load = os.getloadavg()[0]
        found = {
            name: _beside_copies(world, ways, name, given.scratch / "under-test")
            for name in names[turn:] + names[:turn]
        }
        if number:  # the first of each is slower: page cache, allocator, processes that start
            rounds.append({"load": load, "ways": {name: found[name] for name in names}})
    if world.place.rank == 0:
        facts = {"bytes": size, "ranks": given.ranks, "folder": str(given.folder.resolve())}
        text = json.dumps({**facts, "torch": torch.__version__, "rounds": rounds})
        (given.scratch / "result.json").write_text(text)
    leave(world)


def _beside_copies(world: Any, ways: dict[str, Any], name: str, folder: Path) -> dict[str, float]:
    """`copy`: the mean of one right before and one right after, for a copy alone takes 80 to 110 ms
    and drifts within a round by more than what a save adds to it."""
    before = _one(world, ways[COPY], folder)["stall"]
    found = _one(world, ways[name], folder)
    after = _one(world, ways[COPY], folder)["stall"]
    return found | {"copy": (before + after) / 2}


def _one(world: Any, way: Any, folder: Path) -> dict[str, float]:
    """Seconds of a save and of two loads by the slowest rank."""
    lead = world.place.rank == 0
    if lead:
        folder.mkdir()
    world.sum([0.0])
    started = time.perf_counter()
    saved = way.save(folder)
    world.sum([0.0])
    fsynced = time.perf_counter()
    if not saved.is_durable:
        _fsync_share(folder, world.place.rank, world.place.world_size)
    durable_s = saved.done_s if saved.is_durable else saved.done_s + time.perf_counter() - fsynced
    seconds = {"stall": saved.stall_s, "durable": durable_s, "whole": fsynced - started}
    if any(folder.rglob("*")):
        world.sum([0.0])
        seconds["warm"] = _timed(lambda: way.load(folder))
        world.sum([0.0])
        if lead:
            _forget(folder)
        world.sum([0.0])
        seconds["cold"] = _timed(lambda: way.load(folder))
    slowest = dict(zip(seconds, world.max(list(seconds.values())), strict=True))
    if lead:
        shutil.rmtree(folder)
        _settle(folder.parent)
    world.sum([0.0])
    return slowest


def _settle(folder: Path) -> None:
    """What was removed is given back to the disk in nobody else's turn."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    time.sleep(_PAUSE_S)


def _fsync_share(folder: Path, rank: int, world_size: int) -> None:
    for path in sorted((*folder.rglob("*"), folder))[rank::world_size]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


# --- the table -------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """Medians over rounds; ratios within a round to the floor of the same round."""
    rounds: list[Round] = [r["ways"] for r in result["rounds"]]
    size = result["bytes"] / 1e9
    loads = [r["load"] for r in result["rounds"]]
    lines = [
        f"{time.strftime('%Y-%m-%d')}  {platform.machine()}, {os.cpu_count()} cores, torch "
        f"{result['torch']}, load {min(loads):.1f} to {max(loads):.1f}",
        f"{size:.2f} GB by {result['ranks']} ranks in {result['folder']}, median of "
        f"{len(rounds)} rounds; / raw: rate over raw write + fsync, raw read, of the same round",
        f"{'':<24}{'stall s':>8}{'- copy':>8}{'durable s':>10}{'/ raw':>7}"
        f"{'cold s':>8}{'/ raw':>7}{'warm s':>8}",
    ]
    for name in rounds[0]:
        lines.append(_line(name, rounds))
    return "\n".join(lines)


def _line(name: str, rounds: list[Round]) -> str:
    def middle(figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(r) for r in rounds)

    def over_floor(key: str) -> float:
        return middle(lambda r: r[FLOOR][key] / r[name][key])

    stall, durable = (middle(lambda r, k=k: r[name][k]) for k in ("stall", "durable"))  # type: ignore[misc]
    beyond = middle(lambda r: r[name]["stall"] - r[name]["copy"])
    said = f"{name:<24}{stall:>8.3f}{beyond:>8.3f}"
    if "cold" not in rounds[0][name]:
        return said
    said += f"{durable:>10.2f}{over_floor('durable'):>7.2f}"
    cold, warm = (middle(lambda r, k=k: r[name][k]) for k in ("cold", "warm"))  # type: ignore[misc]
    return said + f"{cold:>8.2f}{over_floor('cold'):>7.2f}{warm:>8.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk under test")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="12: 103 M parameters")
    parser.add_argument("--ways", default="", help="a few by name, comma between; the floors stay")
    parser.add_argument("--json", type=Path, help="keep every single time")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
