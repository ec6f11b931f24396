"""One rank of `longhaul doctor`: look at this machine, meet the others, measure together.

    python -m trainer.doctor.rank RUN_FOLDER --attempt N

Started like a worker, by the same contract. Reads attempts/N/plan.json and doctor.json beside it.
The first rank of a node writes attempts/N/node-RANK.json before it meets anybody, so that ranks
that cannot meet are not silent; rank 0 writes RUN_FOLDER/doctor.json at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.dist.place import Place
from trainer.dist.startup import StartUp
from trainer.errors import Exit, LonghaulError
from trainer.health.machine import gather_machine
from trainer.health.network import fastest_link
from trainer.health.versions import gather_versions
from trainer.plan import plan_of_attempt
from trainer.records.attempt import Done, Started, error_record, write_first, write_record
from trainer.records.json_file import read_json, write_json
from trainer.records.redact import hide_secrets, redactor_of
from trainer.records.run_files import AttemptFiles, RunFiles

REQUEST = "doctor.json"  # of the attempt: megabytes, pairs, expected_bytes_per_s
RESULT = "doctor.json"  # of the run folder
_OF_A_LINK = 0.3  # of what the fastest link says: less is worth a look at every pair


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.doctor.rank", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    hide_secrets(os.environ)
    run = RunFiles(given.run_folder.resolve())
    startup = StartUp()
    place = Place()
    try:
        place = Place.from_env()
        return _examine(run, run.attempt(given.attempt), place, startup)
    except Exception as e:  # told to whoever started us, in the file that says so
        record = error_record(e, rank=place.rank, step=None)
        print(record.traceback, file=sys.stderr)
        write_first(run.attempt(given.attempt).error, record)
        return int(e.exit_code if isinstance(e, LonghaulError) else Exit.FAILED)


def _examine(run: RunFiles, files: AttemptFiles, place: Place, startup: StartUp) -> int:
    plan = plan_of_attempt(files)
    request = read_json(files.root / REQUEST)
    mine = _who(place)
    if place.local_rank == 0:
        mine["machine"] = gather_machine(os.environ, run_root=run.root)
        mine["machine"]["folder"]["path"] = str(run.root.parent.parent)  # run.root of the settings
        _write_clean(files.root / f"node-{place.rank:05d}.json", mine)
    mine["versions"] = gather_versions()
    startup.lap("python")
    from trainer.dist.join import join
    from trainer.dist.world import leave

    startup.lap("imports")
    timeout_s = plan.config.resources.collective_timeout_s
    world = join(
        place,
        device=plan.device,
        threads=plan.threads_per_rank,
        timeout_s=timeout_s,
        token=f"{plan.run_id}.{plan.attempt}",
    )
    startup.lap("meet")
    if place.rank == 0:
        write_record(files.started, Started(time.time(), 0, place.world_size, mine["host"]))
    result = _measure(world, run, mine, request, startup, timeout_s)
    if place.rank == 0:
        _write_clean(run.root / RESULT, result)
        write_record(files.done, Done(time.time(), 0, None))
    leave(world)
    return int(Exit.DONE)


def _who(place: Place) -> dict[str, Any]:
    """`node`: as the scheduler calls it, so that it can be told to leave it out."""
    host = socket.gethostname()
    return {
        "rank": place.rank,
        "local_rank": place.local_rank,
        "host": host,
        "node": os.environ.get("SLURMD_NODENAME") or host,
    }


def _measure(
    world: Any,
    run: RunFiles,
    mine: dict[str, Any],
    request: Mapping[str, Any],
    startup: StartUp,
    timeout_s: float,
) -> dict[str, Any]:
    """What rank 0 writes. Collective."""
    from trainer.dist import probes
    from trainer.doctor.compute import measure_compute
    from trainer.doctor.network import Nodes, measure_network, measure_pairs
    from trainer.doctor.visible import measure_visible

    def beat() -> None:
        startup.pulse.beat("build", 0)

    nodes, me = Nodes.of(world, mine["node"]), world.place.rank
    if me not in nodes.leaders:
        mine.pop("machine", None)  # its node's first rank has looked, too
    mine["startup_s"] = startup.seconds
    _say("compute")
    mine["compute"] = measure_compute(world)
    beat()
    pairs: list[Any] = []
    if world.place.world_size > 1:
        _say("shared folder")
        mine["visible"] = measure_visible(world, run.root, looks=nodes.looks(me))
        beat()
        if len(nodes.leaders) > 1 and me in nodes.leaders:
            _say("clocks")
            mine["clocks"] = probes.clock_offsets(nodes.leaders, rank=me)
        world.max([0.0])
        beat()
        _say("all-reduce")
        megabytes = request["megabytes"]
        mine["network"] = measure_network(
            world, nodes, timeout_s=timeout_s, megabytes=megabytes, beat=beat
        )
        expected = mine["expected_bytes_per_s"] = _expected(request, mine.get("machine"), nodes)
        if world.lead(lambda: _wants_pairs(request, mine["network"], nodes, expected)):
            _say("pairs")
            players = nodes.leaders if len(nodes.leaders) > 1 else range(world.place.world_size)
            pairs = measure_pairs(world, players, beat=beat)
    return _gathered(world, mine, pairs)


def _wants_pairs(
    request: Mapping[str, Any], network: Mapping[str, Any], nodes: Any, expected: float
) -> bool:
    """Asked for, or the whole is slower than what is expected."""
    measured = network["across"] if len(nodes.leaders) > 1 else network["world"]
    best = max(row["bus_bytes_per_s"] for row in measured)
    return bool(request["pairs"] or best < expected)


def _expected(request: Mapping[str, Any], machine: Any, nodes: Any) -> float:
    """Bytes a second of the all-reduce between nodes (within one alone); 0: not known."""
    asked = request["expected_bytes_per_s"]
    if asked or machine is None or len(nodes.leaders) == 1:
        return float(asked or 0.0)
    return fastest_link(machine["network"]) * 1e9 / 8 * _OF_A_LINK


def _gathered(world: Any, mine: dict[str, Any], pairs: list[Any]) -> dict[str, Any]:
    """Everybody's, on rank 0. Lists of packages travel only where they differ. Collective."""
    packages = mine["versions"].pop("packages")
    ranks = [json.loads(text) for text in world.gather(json.dumps(mine | {"pairs": pairs}))]
    same = world.lead(lambda: len({one["versions"]["digest"] for one in ranks}) == 1)
    versions = {"0": packages}
    if not same:
        lists = world.gather(json.dumps(packages))
        versions = {str(rank): json.loads(text) for rank, text in enumerate(lists)}
    return {
        "format": 1,
        "world_size": world.place.world_size,
        "device": world.device.type,
        "ranks": ranks,
        "versions": versions,
    }


def _write_clean(path: Path, value: Any) -> None:
    """Without what this process knows as secrets, wherever it stands."""
    write_json(path, redactor_of(os.environ).values(value))


def _say(what: str) -> None:
    print(f"doctor: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Not sys.exit: what vendors do at exit may wait for ever.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
