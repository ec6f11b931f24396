"""What the ranks measured together, judged. Pure: the file that rank 0 wrote -> findings.

    {"ranks": [{rank, node, startup_s, compute, visible, network, pairs, ...}], "versions": {...}}

Nobody is compared with a table of hardware: ranks with the other ranks, nodes with the other nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from trainer.health.finding import Finding, Needs
from trainer.health.machine import judge_machine
from trainer.health.network import judge_settings
from trainer.health.versions import judge_versions
from trainer.records.sizes import size_text

_SLOW_MEETING_S = 30.0
_SLOW_IMPORTS_S = 60.0
_SKEW_S, _SKEW_WARN_S = 1.0, 0.1
_LATE_S, _LATE_WARN_S = 5.0, 1.0  # until a write is seen elsewhere
_SLOW_LINK = 0.6  # of the others' median
_FEW = 16  # players
_SLOW_DISK = 0.3  # likewise; disks vary more


@dataclass(frozen=True)
class Slower:
    """How many times slower than the median a rank may compute."""

    warn: float
    problem: float


_COMPUTE = {"cpu": Slower(1.5, 2.0), "cuda": Slower(1.1, 1.25)}  # cores are shared, GPUs are not


def judge_result(result: Mapping[str, Any], needs: Needs) -> list[Finding]:
    ranks: Sequence[Mapping[str, Any]] = result["ranks"]
    leaders = [one for one in ranks if "machine" in one]
    found = [_versions(result, ranks)]
    for one in leaders:
        found += judge_machine(one["machine"], needs, node=one["node"])
    settings = {one["node"]: one["machine"]["network"]["settings"] for one in leaders}
    if len(leaders) > 1:
        found += judge_settings(settings)
        found += _among_nodes(leaders)
    found += _meeting(ranks)
    found += _compute(ranks, result["device"])
    found += _visible(ranks)
    found += _clocks(ranks)
    found += _all_reduce(ranks, leaders)
    found += _pairs(ranks, leaders)
    return found


def _versions(result: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> Finding:
    names = {str(one["rank"]): f"rank {one['rank']} ({one['node']})" for one in ranks}
    return judge_versions({names[rank]: found for rank, found in result["versions"].items()})


def _among_nodes(leaders: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What is well on each node alone and yet differs."""
    drivers = {one["node"]: one["machine"]["gpus"].get("driver") for one in leaders}
    usual = Counter(drivers.values()).most_common(1)[0][0]
    for node, driver in drivers.items():
        if driver != usual:
            what = f"driver {driver}, others {usual}"
            yield Finding("GPU driver", what, "problem", "the same driver on all nodes", node)
    disks = {one["node"]: one["machine"]["folder"] for one in leaders}
    speeds = {n: one["write_bytes_per_s"] for n, one in disks.items() if "error" not in one}
    middle = median(speeds.values()) if speeds else 0.0
    for node, speed in speeds.items():
        if speed < _SLOW_DISK * middle:
            what = f"{size_text(speed)}/s, others {size_text(middle)}/s"
            yield Finding("disk speed", what, "warn", "its mount, or its network", node)


def _meeting(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The last to come waits for nobody: its time is that of the meeting itself."""
    imports = max(ranks, key=lambda one: one["startup_s"]["imports"])
    seconds = imports["startup_s"]["imports"]
    text = f"{seconds:.1f} s at most"
    if seconds > _SLOW_IMPORTS_S:
        fix = "the environment on a local disk of every node"
        who = f"rank {imports['rank']}"
        yield Finding("imports", f"{text} ({who})", "warn", fix, imports["node"])
    else:
        yield Finding("imports", text)
    if len(ranks) > 1:
        seconds = min(one["startup_s"]["meet"] for one in ranks)
        slow = seconds > _SLOW_MEETING_S
        fix = "name resolution and firewalls between nodes; NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME"
        text = f"{len(ranks)} ranks met in {seconds:.1f} s"
        yield Finding("rendezvous", text, *(("problem", fix) if slow else ()))


def _compute(ranks: Sequence[Mapping[str, Any]], device: str) -> Iterator[Finding]:
    limit = _COMPUTE[device]
    usual = median(one["compute"]["products_per_s"] for one in ranks)
    if len(ranks) == 2:  # the median of two is between them: the faster one is what can be had
        usual = max(one["compute"]["products_per_s"] for one in ranks)
    slow = False
    for one in ranks:
        times = usual / max(one["compute"]["products_per_s"], 1e-9)
        if times < limit.warn:
            continue
        slow = True
        share = one["compute"]["core_share"]
        text = f"rank {one['rank']} computes {times:.1f} times slower than the others"
        if device == "cpu":
            text += f"; it was given a core for {share:.0%} of the time"
        fix = "what else runs there (top, nvidia-smi)? limits of the container? throttling?"
        verdict: Any = "problem" if times >= limit.problem else "warn"
        yield Finding("compute", text, verdict, fix, one["node"])
    if not slow and len(ranks) > 1:
        slowest = min(one["compute"]["products_per_s"] for one in ranks)
        yield Finding("compute", f"slowest rank {usual / slowest:.2f} times the usual")


def _visible(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Rank 0 sees what it wrote itself."""
    on_one_node = sum("machine" in one for one in ranks) == 1  # then all ranks have looked
    looked = [one for one in ranks if on_one_node or "machine" in one]
    watched = [one for one in looked if one["rank"] and "visible" in one]
    if not watched:
        return
    fix = "run.root must be one folder that every node mounts: NFS, Lustre, GPFS"
    blind = [one for one in watched if None in one["visible"].values()]
    for one in blind:
        what = "what rank 0 writes into run.root is never seen here"
        yield Finding("shared folder", what, "problem", fix, one["node"])
    seen = [one for one in watched if one not in blind]
    if not seen:
        return
    worst = max(seen, key=lambda one: max(one["visible"].values()))
    seconds = max(worst["visible"].values())
    text = f"a write is seen after {seconds:.3f} s at most"
    fix = "NFS: mount with noac or a small acregmax; failures are noticed so much later"
    if seconds > _LATE_WARN_S:
        verdict: Any = "problem" if seconds > _LATE_S else "warn"
        yield Finding("shared folder", text, verdict, fix, worst["node"])
    else:
        yield Finding("shared folder", text)


def _clocks(ranks: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """All against rank 0's; if most are off, it is rank 0's that is wrong."""
    offsets = ranks[0].get("clocks", [])
    if not offsets:
        return
    usual = median([0.0, *(one["offset_s"] for one in offsets)])
    nodes = {one["rank"]: one["node"] for one in ranks}
    clocks = {0: 0.0, **{int(one["rank"]): one["offset_s"] for one in offsets}}
    fix = "start chronyd or systemd-timesyncd; logs and ledgers of nodes cannot be compared"
    for rank, offset in clocks.items():
        off = offset - usual
        if abs(off) >= _SKEW_WARN_S:
            verdict: Any = "problem" if abs(off) >= _SKEW_S else "warn"
            yield Finding("clock", f"{off:+.2f} s from the others", verdict, fix, nodes[rank])
    worst = max(abs(offset - usual) for offset in clocks.values())
    if worst < _SKEW_WARN_S:
        trip = min(one["round_trip_s"] for one in offsets)
        yield Finding("clock", f"{worst * 1e3:.2f} ms apart at most (pings of {trip * 1e6:.0f} us)")


def _all_reduce(
    ranks: Sequence[Mapping[str, Any]], leaders: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    network = ranks[0].get("network")
    if network is None:
        return
    expected = ranks[0].get("expected_bytes_per_s", 0.0)
    yield _bandwidth("all-reduce", network["world"], 0.0 if network["across"] else expected)
    if network["across"]:
        yield _bandwidth("all-reduce across nodes", network["across"], expected)
    within = {one["node"]: one["network"]["within"] for one in leaders if one["network"]["within"]}
    speeds = {node: max(row["bus_bytes_per_s"] for row in rows) for node, rows in within.items()}
    for node, speed in speeds.items():
        others = median(speeds.values())
        if len(speeds) > 2 and speed < _SLOW_LINK * others:
            what = f"{size_text(speed)}/s, others {size_text(others)}/s"
            fix = "NVLink and PCIe of that node: nvidia-smi topo -m, nvidia-smi nvlink -s"
            yield Finding("all-reduce within a node", what, "problem", fix, node)
    if speeds and not network["across"]:
        return
    if speeds:
        low, high = min(speeds.values()), max(speeds.values())
        text = f"{size_text(low)}/s to {size_text(high)}/s"
        yield Finding("all-reduce within a node", text)


def _bandwidth(name: str, rows: Sequence[Mapping[str, float]], expected: float) -> Finding:
    latency, best = rows[0], max(rows, key=lambda row: row["bus_bytes_per_s"])
    speed = best["bus_bytes_per_s"]
    text = (
        f"{size_text(speed)}/s a link at {size_text(best['bytes'])}, "
        f"{latency['seconds'] * 1e6:,.0f} us for 8 bytes, {best['ranks']:.0f} ranks"
    )
    if speed < expected:
        fix = "the pairs below say whose; else the fabric: NCCL_IB_HCA, NCCL_SOCKET_IFNAME, MTU"
        return Finding(name, f"{text}; expected {size_text(expected)}/s", "problem", fix)
    return Finding(name, text)


def _pairs(
    ranks: Sequence[Mapping[str, Any]], leaders: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Who is slow with everybody is the cause; who is slow with one only has a bad way to it."""
    pairs = [pair for one in ranks for pair in one["pairs"]]
    if not pairs:
        return
    many = len(leaders) > 1
    names = {one["rank"]: one["node"] if many else f"rank {one['rank']}" for one in ranks}
    usual = median(pair["bytes_per_s"] for pair in pairs)
    slow = [pair for pair in pairs if pair["bytes_per_s"] < _SLOW_LINK * usual]
    bad = slow_with_all(pairs)
    fix = "its cable, port or NIC; leave it out until then"
    for rank in bad:
        best = max(pair["bytes_per_s"] for pair in pairs if rank in pair["ranks"])
        what = f"{names[rank]} exchanges {size_text(best)}/s at best, others {size_text(usual)}/s"
        yield Finding("pairs", what, "problem", fix, names[rank] if many else "")
    for pair in slow:
        one, other = pair["ranks"]
        if bad and set(pair["ranks"]) & set(bad):
            continue
        what = f"{names[one]} and {names[other]}: {size_text(pair['bytes_per_s'])}/s, "
        yield Finding("pairs", f"{what}others {size_text(usual)}/s", "warn", "the way between them")
    if not slow and not bad:
        low = min(pair["bytes_per_s"] for pair in pairs)
        high = max(pair["bytes_per_s"] for pair in pairs)
        yield Finding("pairs", f"{size_text(low)}/s to {size_text(high)}/s, pairs: {len(pairs)}")


def slow_with_all(pairs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Players whose best pair is slow beside the usual of pairs without them; of two, nobody can be
    told."""
    best: dict[int, float] = {}
    for pair in pairs:
        for player in pair["ranks"]:
            best[player] = max(best.get(player, 0.0), pair["bytes_per_s"])
    if len(best) < 3:
        return []
    usual = median(pair["bytes_per_s"] for pair in pairs)
    return sorted(
        player
        for player, speed in best.items()
        if speed < _SLOW_LINK * (usual if len(best) > _FEW else _without(player, pairs))
    )


def _without(player: int, pairs: Sequence[Mapping[str, Any]]) -> float:
    """Of few players, one makes up much of all pairs."""
    return float(median(pair["bytes_per_s"] for pair in pairs if player not in pair["ranks"]))
