"""What `longhaul doctor` says of what ranks measured together; who is left out; how it is shown."""

from __future__ import annotations

import copy
import json
from itertools import combinations
from typing import Any

import pytest

from launch.commands.doctor import judged, needs_of
from launch.doctor.job import Examined
from launch.doctor.judge import judge_result, slow_with_all
from launch.doctor.report import as_json, as_text, excluded, is_well
from tests.helpers.configs import config
from trainer.doctor.pairs import partner, tournament
from trainer.health.finding import Finding, Needs

MIB = 1 << 20


def machine(node: str) -> dict[str, Any]:
    """Of a node on which everything is well."""
    return {
        "limits": {
            "open_files": None, "locked_memory_bytes": None, "processes": None,
            "core_file_bytes": 0, "cores": 64, "cpu_quota": None, "memory_bytes": 1 << 40,
        },
        "shared_memory": {"path": "/dev/shm", "total_bytes": 1 << 38, "free_bytes": 1 << 38},
        "folder": {
            "path": "/scratch", "file_system": "nfs4", "lacks": [], "free_bytes": 1 << 42,
            "total_bytes": 1 << 43, "write_bytes_per_s": 1e9, "files_per_s": 500.0,
        },
        "clock": {"synchronised": True, "max_error_s": 0.01},
        "network": {
            "host": node, "addresses": ["10.0.0.1"], "lookup_s": {}, "master": "n0",
            "master_addresses": ["10.0.0.1"], "interfaces": [], "infiniband": [], "settings": {},
            "proxies": [],
        },
        "build_locks": {"folder": "/tmp/x", "chosen": True, "locks": []},
        "gpus": {"found": False, "gpus": []},
        "credentials": {"variables": [], "files": []},
    }  # fmt: skip


def rows(speed: float, ranks: int) -> list[dict[str, float]]:
    small = {"bytes": 8, "ranks": ranks, "seconds": 2e-5, "slowest_s": 3e-5, "bus_bytes_per_s": 1.0}
    large = small | {"bytes": 16 * MIB, "bus_bytes_per_s": speed}
    return [small, large]


def healthy(nodes: int = 4, per_node: int = 2) -> dict[str, Any]:
    """What rank 0 writes when nothing is wrong."""
    world = nodes * per_node
    ranks = []
    for rank in range(world):
        node = f"n{rank // per_node}"
        one: dict[str, Any] = {
            "rank": rank, "local_rank": rank % per_node, "host": node, "node": node,
            "startup_s": {"python": 0.3, "imports": 2.0, "meet": 0.5},
            "versions": {"digest": "abc"},
            "compute": {"products_per_s": 100.0 + rank, "core_share": 0.99},
            "visible": {"name_s": 0.01, "content_s": 0.01},
            "network": {"world": rows(2e9, world), "within": rows(9e9, per_node),
                        "across": rows(2e9, nodes)},
            "expected_bytes_per_s": 0.0,
            "pairs": [],
        }  # fmt: skip
        if rank % per_node == 0:
            one["machine"] = machine(node)
        ranks.append(one)
    others = range(per_node, world, per_node)
    ranks[0]["clocks"] = [{"rank": r, "offset_s": 0.001, "round_trip_s": 1e-4} for r in others]
    return {"ranks": ranks, "versions": {"0": {"python": "3.12"}}, "device": "cpu"}


def findings(result: dict[str, Any], nodes: int = 4) -> list[Finding]:
    return judge_result(result, Needs(nodes=nodes, ranks_per_node=2))


def bad(result: dict[str, Any]) -> list[Finding]:
    return [one for one in findings(result) if one.verdict != "ok"]


def pairs(players: list[int], slow: dict[tuple[int, int], float]) -> list[dict[str, Any]]:
    return [
        {"ranks": list(pair), "bytes_per_s": slow.get(pair, 1e9)}
        for pair in combinations(players, 2)
    ]


NODES = ["n0", "n1", "n2", "n3"]


def test_nothing_is_said_of_a_healthy_cluster() -> None:
    found = findings(healthy())
    assert not [one for one in found if one.verdict != "ok"]
    assert is_well(found)
    assert excluded(found, NODES) == []


def test_one_slow_rank_is_named_with_the_time_it_was_given() -> None:
    result = healthy()
    result["ranks"][5]["compute"] = {"products_per_s": 30.0, "core_share": 0.31}
    (one,) = bad(result)
    assert (one.name, one.verdict, one.node) == ("compute", "problem", "n2")
    assert one.value.startswith("rank 5 computes 3.4 times slower")
    assert "given a core for 31%" in one.value
    assert excluded([one], NODES) == ["n2"]


def test_gpus_are_held_to_less_than_cores() -> None:
    result = healthy()
    result["ranks"][3]["compute"]["products_per_s"] = 80.0  # others: about 103
    assert not bad(result)
    result["device"] = "cuda"
    (one,) = bad(result)
    assert (one.verdict, one.node) == ("problem", "n1")


def test_of_two_ranks_the_slower_one_is_named() -> None:
    result = healthy(nodes=1)
    result["ranks"][1]["compute"]["products_per_s"] = 20.0
    found = judge_result(result, Needs(ranks_per_node=2))
    (one,) = [one for one in found if one.verdict != "ok"]
    assert one.value.startswith("rank 1 computes 5.0 times slower")


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.5, None), (2.0, "warn"), (9.0, "problem"), (None, "problem")]
)
def test_how_late_a_write_is_seen(seconds: float | None, verdict: str | None) -> None:
    result = healthy()
    result["ranks"][4]["visible"] = {"name_s": 0.01, "content_s": seconds}
    found = bad(result)
    assert [(one.name, one.verdict, one.node) for one in found] == (
        [("shared folder", verdict, "n2")] if verdict else []
    )


def test_a_clock_that_is_off_is_one_node_s() -> None:
    result = healthy()
    result["ranks"][0]["clocks"][1]["offset_s"] = -7.0
    (one,) = bad(result)
    assert (one.name, one.verdict, one.node) == ("clock", "problem", "n2")
    assert one.value == "-7.00 s from the others"


def test_when_all_others_are_off_it_is_the_first_node_s_clock() -> None:
    result = healthy()
    for one in result["ranks"][0]["clocks"]:
        one["offset_s"] = 3.0
    (found,) = bad(result)
    assert (found.node, found.value) == ("n0", "-3.00 s from the others")


def test_a_slow_meeting_is_the_time_of_who_came_last() -> None:
    result = healthy()
    for one in result["ranks"]:
        one["startup_s"]["meet"] = 70.0
    result["ranks"][3]["startup_s"]["meet"] = 0.5
    assert not bad(result), "they waited for rank 3, which was not the meeting's fault"
    result["ranks"][3]["startup_s"]["meet"] = 45.0
    (one,) = bad(result)
    assert (one.name, one.verdict) == ("rendezvous", "problem")


def test_an_all_reduce_below_what_was_expected() -> None:
    result = healthy()
    result["ranks"][0]["expected_bytes_per_s"] = 10e9
    (one,) = bad(result)
    assert (one.name, one.verdict) == ("all-reduce across nodes", "problem")
    assert "expected 9.3 GiB/s" in one.value


def test_on_one_node_what_was_expected_is_of_all_its_ranks() -> None:
    result = healthy(nodes=1)
    for one in result["ranks"]:
        one["network"]["across"] = []
    result["ranks"][0]["expected_bytes_per_s"] = 10e9
    found = judge_result(result, Needs(ranks_per_node=2))
    assert [(one.name, one.verdict) for one in found if one.verdict != "ok"] == [
        ("all-reduce", "problem")
    ]


def test_another_driver_and_a_slower_disk_are_found_among_nodes() -> None:
    result = healthy()
    for one in result["ranks"]:
        if "machine" in one:
            one["machine"]["gpus"] = {"found": True, "driver": "580.126.09", "gpus": []}
    result["ranks"][4]["machine"]["gpus"]["driver"] = "535.54.03"
    result["ranks"][6]["machine"]["folder"]["write_bytes_per_s"] = 1.5e8
    assert [(one.name, one.verdict, one.node) for one in bad(result)] == [
        ("GPU driver", "problem", "n2"),
        ("disk speed", "warn", "n3"),
    ]


def test_a_node_that_is_slow_within() -> None:
    result = healthy()
    result["ranks"][2]["network"]["within"] = rows(1e9, 2)
    (one,) = bad(result)
    assert (one.name, one.node) == ("all-reduce within a node", "n1")


def test_the_node_that_is_slow_with_everybody_is_found_among_pairs() -> None:
    result = healthy()
    slow = {pair: 2e8 for pair in combinations([0, 2, 4, 6], 2) if 4 in pair}
    result["ranks"][0]["pairs"] = pairs([0, 2, 4, 6], slow)
    (one,) = bad(result)
    assert (one.name, one.verdict, one.node) == ("pairs", "problem", "n2")
    assert excluded([one], NODES) == ["n2"]


def test_one_bad_way_between_two_nodes_blames_neither() -> None:
    result = healthy()
    result["ranks"][0]["pairs"] = pairs([0, 2, 4, 6], {(2, 6): 1e8})
    (one,) = bad(result)
    assert (one.name, one.verdict, one.node) == ("pairs", "warn", "")
    assert "n1 and n3" in one.value


@pytest.mark.parametrize("count", [3, 4, 16, 17, 40])
def test_the_slow_one_is_found_among_any_number(count: int) -> None:
    players = list(range(count))
    slow = {pair: 3e8 for pair in combinations(players, 2) if 1 in pair}
    assert slow_with_all(pairs(players, slow)) == [1]


def test_of_two_players_nobody_can_be_told() -> None:
    assert slow_with_all([{"ranks": [0, 1], "bytes_per_s": 1.0}]) == []


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16])
def test_every_pair_meets_once_in_rounds_that_share_nobody(count: int) -> None:
    players = list(range(10, 10 + count))
    rounds = tournament(players)
    assert len(rounds) == (count - 1 if count % 2 == 0 else count)
    met = [tuple(sorted(pair)) for pairs in rounds for pair in pairs]
    assert sorted(met) == list(combinations(players, 2))
    for one in rounds:
        busy = [player for pair in one for player in pair]
        assert len(busy) == len(set(busy))
        for a, b in one:
            assert (partner(one, a), partner(one, b)) == (b, a)
    assert tournament([3]) == []


def test_versions_differ_on_one_rank() -> None:
    result = healthy()
    result["versions"] = {str(r): {"torch": "2.11.0"} for r in range(8)}
    result["versions"]["6"] = {"torch": "2.13.0"}
    (one,) = bad(result)
    assert "2.13.0 on rank 6 (n3)" in one.value


# --- left out, and shown ---------------------------------------------------------------------


def problem(node: str, name: str = "shared memory") -> Finding:
    return Finding(name, "64.0 MiB", "problem", "a larger one", node)


def test_what_most_nodes_have_excludes_none() -> None:
    three = [problem(node) for node in NODES[:3]]
    assert excluded(three, NODES) == []
    assert excluded([*three, problem("n3", "GPU 0")], NODES) == ["n3"]
    assert excluded([problem("n1"), problem("n2")], NODES) == ["n1", "n2"]


def test_warnings_exclude_nobody_and_the_only_node_stays() -> None:
    warned = Finding("compute", "slow", "warn", "", "n1")
    assert excluded([warned], NODES) == []
    assert excluded([problem("n0")], ["n0"]) == []


def test_the_text_has_one_table_and_a_line_for_each_problem() -> None:
    ok = [Finding("cores", "64 cores", node=node) for node in NODES]
    text = as_text([*ok, problem("n2"), Finding("clock", "late", "warn")], nodes=NODES)
    lines = text.splitlines()
    assert lines[0].split() == ["check", "node", "found", "verdict"]
    assert lines[1].split() == ["cores", "4", "nodes", "64", "cores", "ok"]
    assert "PROBLEM: shared memory on n2: 64.0 MiB" in lines
    assert "     try: a larger one" in lines
    assert "warning: clock: late" in lines
    assert lines[-2:] == ["1 problem", "leave out: n2"]


def test_the_json_holds_findings_the_verdict_and_what_was_measured() -> None:
    measured = healthy()
    value = as_json([problem("n1")], nodes=NODES, measured=copy.deepcopy(measured))
    back = json.loads(json.dumps(value))
    assert (back["well"], back["exclude"]) == (False, ["n1"])
    assert back["findings"][0]["verdict"] == "problem"
    assert back["measured"] == json.loads(json.dumps(measured))


# --- a job that came to no result -----------------------------------------------------------------

HERE = {"machine": machine("login"), "versions": {"packages": {"python": "3.12"}}}
FAILED = Finding("job", "it ended without a result", "problem")


def test_the_machine_that_hands_a_job_over_is_none_of_its_nodes() -> None:
    lost = Examined(None, "cpu", failure=FAILED)
    found, nodes = judged(lost, HERE, Needs(nodes=2), is_local=False)
    assert nodes == []
    (said,) = [one for one in found if one.name == "nodes"]
    assert said.value == "0 of 2 nodes were heard of"
    assert {one.node for one in found if one.name == "run root"} == {"login (here)"}
    assert not [one for one in found if one.name == "cores"]


def test_nodes_that_were_heard_of_are_judged_by_what_their_ranks_compute_on() -> None:
    """The machine that hands the job over need have no GPU."""
    early = [{"node": "n0", "host": "n0", "machine": machine("n0")}]
    some = Examined(None, "cuda", early, FAILED)
    needs = needs_of(config("resources.nodes=2", "batch.micro_batch_size=1"), some.device)
    found, nodes = judged(some, HERE, needs, is_local=False)
    assert nodes == ["n0"]
    assert [one.node for one in found if one.name == "GPUs" and one.verdict == "problem"] == ["n0"]
    assert [one.value for one in found if one.name == "nodes"] == ["1 of 2 nodes were heard of: n0"]
