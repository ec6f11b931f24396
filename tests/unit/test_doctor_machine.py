"""What one machine is found to have, and what `longhaul doctor` says of it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from trainer.health import build_locks, credentials, folder, limits, network, shared_memory
from trainer.health.clock import gather_clock, judge_clock
from trainer.health.finding import Facts, Finding, Needs
from trainer.health.machine import gather_machine, judge_machine
from trainer.health.versions import gather_versions, judge_versions

TWO = Needs(ranks_per_node=2)
MANY = Needs(nodes=8, ranks_per_node=8)


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {one.name: one.verdict for one in findings}


def bad(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.verdict != "ok"]


def test_everything_of_this_machine_is_found_and_judged(tmp_path: Path) -> None:
    facts = gather_machine({"HOME": str(tmp_path)}, run_root=tmp_path)
    found = judge_machine(facts, Needs(), node="here")
    assert {one.node for one in found} == {"here"}
    names = {"open files", "cores", "memory", "shared memory", "run root", "room", "disk speed"}
    assert names <= {one.name for one in found}
    assert not list(tmp_path.iterdir()), "what was measured is gone again"


# --- versions --------------------------------------------------------------------------------


def test_versions_of_this_process_are_those_that_are_imported() -> None:
    found = gather_versions()["packages"]
    assert found["python"].startswith("3.")
    assert "pydantic" in found


def test_a_rank_with_another_version_is_named() -> None:
    usual = {"python": "3.12.3", "torch": "2.11.0", "numpy": "2.4"}
    seen = {f"rank {r} (n{r})": dict(usual) for r in range(4)}
    assert judge_versions(seen).verdict == "ok"
    seen["rank 2 (n2)"] |= {"torch": "2.13.0"}
    seen["rank 3 (n3)"].pop("numpy")
    said = judge_versions(seen)
    assert said.verdict == "problem"
    assert "torch is 2.11.0 on 3 of 4, 2.13.0 on rank 2 (n2)" in said.value
    assert "numpy is 2.4 on 3 of 4, missing on rank 3 (n3)" in said.value


def test_many_differences_are_counted() -> None:
    seen = {"a": {f"p{n}": "1" for n in range(9)}, "b": {f"p{n}": "2" for n in range(9)}}
    assert "and 5 more" in judge_versions(seen).value


# --- limits ----------------------------------------------------------------------------------


def limit_facts(**changed: Any) -> Facts:
    fine = {
        "open_files": 65536,
        "locked_memory_bytes": None,
        "processes": None,
        "core_file_bytes": 0,
        "cores": 64,
        "cpu_quota": None,
        "memory_bytes": 1 << 40,
    }
    return fine | changed


@pytest.mark.parametrize(
    ("changed", "name", "verdict", "fix"),
    [
        ({}, "open files", "ok", ""),
        ({"open_files": 1024}, "open files", "ok", ""),
        ({"open_files": 256}, "open files", "problem", "ulimit -n"),
        ({"processes": 300}, "processes", "problem", "ulimit -u"),
        ({"cores": 1}, "cores", "warn", "resources.ranks_per_node=1"),
        ({"cpu_quota": 1.5}, "cores", "warn", "ask for 2 cores"),
    ],
)
def test_limits(changed: dict[str, Any], name: str, verdict: str, fix: str) -> None:
    found = list(limits.judge_limits(limit_facts(**changed), TWO, has_infiniband=False))
    (one,) = [one for one in found if one.name == name]
    assert one.verdict == verdict
    assert fix in one.fix


def test_open_files_are_counted_for_the_world() -> None:
    world = Needs(nodes=1024, ranks_per_node=8)
    found = limits.judge_limits(limit_facts(open_files=16384), world, has_infiniband=False)
    assert verdicts(list(found))["open files"] == "problem"


def test_locked_memory_matters_with_infiniband_only() -> None:
    facts = limit_facts(locked_memory_bytes=64 << 10)
    without = limits.judge_limits(facts, TWO, has_infiniband=False)
    assert verdicts(list(without))["locked memory"] == "ok"
    with_it = limits.judge_limits(facts, TWO, has_infiniband=True)
    assert verdicts(list(with_it))["locked memory"] == "problem"


def test_a_container_s_memory_and_cores_count(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    found = limits.gather_limits(tmp_path)
    assert (found["memory_bytes"], found["cpu_quota"]) == (1 << 30, 1.5)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    found = limits.gather_limits(tmp_path)
    assert found["memory_bytes"] > 1 << 30
    assert found["cpu_quota"] is None


# --- shared memory ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total_mib", "free_mib", "verdict", "fix"),
    [
        (64, 64, "problem", "--shm-size=2g"),  # Docker's default, for two ranks
        (16384, 16384, "ok", ""),
        (16384, 100, "problem", "remove what dead processes left"),
        (1024, 1024, "warn", "2.0 GiB for 2 ranks"),
    ],
)
def test_shared_memory(total_mib: int, free_mib: int, verdict: str, fix: str) -> None:
    facts = {"path": "/dev/shm", "total_bytes": total_mib << 20, "free_bytes": free_mib << 20}
    found = shared_memory.judge_shared_memory(facts, TWO)
    assert found.verdict == verdict
    assert fix in found.fix


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    facts = shared_memory.gather_shared_memory(tmp_path / "nothing")
    found = shared_memory.judge_shared_memory(facts, TWO)
    assert found.verdict == "problem"
    assert "No such file" in found.value


# --- the run root ----------------------------------------------------------------------------


def test_a_folder_that_can_do_everything(tmp_path: Path) -> None:
    facts = folder.gather_folder(tmp_path, megabytes=1, files=3)
    assert facts["lacks"] == []
    assert facts["write_bytes_per_s"] > 0
    assert next(folder.judge_folder(facts, TWO)).verdict in ("ok", "warn")  # warn: tmpfs


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        ({"lacks": ["flock"]}, "run root", "(lustre) cannot do: flock"),
        ({"error": "Read-only file system"}, "run root", "Read-only file system"),
        ({"free_bytes": 1 << 20}, "room", "1.0 MiB of"),
        ({"write_bytes_per_s": 5e6}, "disk speed", "4.8 MiB/s"),
    ],
)
def test_a_folder_that_will_not_do(changed: dict[str, Any], name: str, value: str) -> None:
    fine = {
        "path": "/scratch",
        "file_system": "lustre",
        "lacks": [],
        "free_bytes": 1 << 40,
        "total_bytes": 1 << 42,
        "write_bytes_per_s": 1e9,
        "files_per_s": 1000.0,
    }
    assert not bad(list(folder.judge_folder(fine, TWO)))
    (one,) = bad(list(folder.judge_folder(fine | changed, TWO)))
    assert (one.name, one.verdict) == (name, "problem")
    assert value in one.value


def test_there_must_be_room_for_two_checkpoints() -> None:
    facts = {"path": "/s", "file_system": "nfs4", "lacks": [], "free_bytes": 100 << 30}
    facts |= {"total_bytes": 1 << 42, "write_bytes_per_s": 1e9, "files_per_s": 100.0}
    needs = Needs(checkpoint_bytes=60 << 30)
    (one,) = bad(list(folder.judge_folder(facts, needs)))
    assert one.fix.startswith("120.0 GiB for 2 checkpoints")


def test_the_mount_that_holds_a_folder(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    parent = str(tmp_path.parent).replace(" ", "\\040")  # as the kernel writes it
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:2 / {parent} rw shared:1 - nfs4 server:/export rw\n"
    )
    assert folder.file_system_of(tmp_path, mounts) == "nfs4"
    assert folder.file_system_of(Path("/"), mounts) == "ext4"


# --- clock, locks, credentials, network ------------------------------------------------------


def test_a_clock_that_nobody_keeps_matters_between_machines() -> None:
    assert set(gather_clock()) == {"synchronised", "max_error_s"}
    lost = {"synchronised": False, "max_error_s": 16.0}
    assert judge_clock(lost, TWO).verdict == "ok"
    assert judge_clock(lost, MANY).verdict == "warn"
    assert judge_clock({"synchronised": True, "max_error_s": 0.02}, MANY).verdict == "ok"


def test_a_lock_that_nobody_holds_is_stale_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    (stale,) = build_locks.judge_build_locks(build_locks.gather_build_locks(env))
    assert stale.verdict == "problem"
    assert f"rm {lock}" in stale.fix
    with lock.open():
        (held,) = build_locks.judge_build_locks(build_locks.gather_build_locks(env))
    assert held.verdict == "ok"
    assert f"process {os.getpid()}" in held.value


def test_a_lock_in_the_default_folder_only_warns(tmp_path: Path) -> None:
    lock = tmp_path / ".cache" / "torch_extensions" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    facts = build_locks.gather_build_locks({"HOME": str(tmp_path)})
    (found,) = build_locks.judge_build_locks(facts)
    assert found.verdict == "warn"


def test_credentials_are_named_and_their_files_are_never_opened(tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    os.mkfifo(netrc, 0o644)  # who opens it waits for ever
    env = {"HOME": str(tmp_path), "WANDB_API_KEY": "0123456789abcdef", "PATH": "/bin"}
    facts = credentials.gather_credentials(env)
    said = list(credentials.judge_credentials(facts, Needs(wandb_online=True)))
    assert "WANDB_API_KEY" in said[0].value
    assert "0123456789abcdef" not in repr((facts, said))
    (loose,) = bad(said)
    assert loose.fix == f"chmod 600 {netrc}"


def test_w_and_b_online_without_a_key_is_said(tmp_path: Path) -> None:
    facts = credentials.gather_credentials({"HOME": str(tmp_path)})
    (one,) = bad(list(credentials.judge_credentials(facts, Needs(wandb_online=True))))
    assert "no key" in one.value


def net_facts(**changed: Any) -> Facts:
    fine: dict[str, Any] = {
        "host": "n1",
        "addresses": ["10.0.0.1"],
        "lookup_s": {"IPv6 addresses of n1": 0.001},
        "master": "n0",
        "master_addresses": ["10.0.0.0"],
        "interfaces": [{"name": "eth0", "gbit_per_s": 25.0}],
        "infiniband": [],
        "settings": {},
        "proxies": [],
    }
    return fine | changed


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({"addresses": []}, "n1 is nowhere"),
        ({"addresses": ["127.0.1.1"]}, "other nodes would be told to call themselves"),
        ({"master_addresses": []}, "n0 is nowhere"),
    ],
)
def test_names_that_other_nodes_cannot_use(changed: dict[str, Any], value: str) -> None:
    assert not bad(list(network.judge_network(net_facts(), MANY)))
    (one,) = bad(list(network.judge_network(net_facts(**changed), MANY)))
    assert one.verdict == "problem"
    assert value in one.value


def test_a_loopback_name_is_well_on_one_node_or_with_a_chosen_interface() -> None:
    facts = net_facts(addresses=["127.0.1.1"])
    assert not bad(list(network.judge_network(facts, TWO)))
    chosen = net_facts(addresses=["127.0.1.1"], settings={"GLOO_SOCKET_IFNAME": "eth0"})
    assert not bad(list(network.judge_network(chosen, MANY)))


def test_slow_lookups_are_said() -> None:
    slow = net_facts(lookup_s={"IPv6 addresses of n1": 10.0, "the name of 10.0.0.1": 0.0})
    (one,) = bad(list(network.judge_network(slow, MANY)))
    assert (one.verdict, one.value) == ("warn", "10.0 s to look up IPv6 addresses of n1")


def test_settings_of_the_network_must_be_the_same_on_all_nodes() -> None:
    same = {"a": {"NCCL_IB_HCA": "mlx5_0"}, "b": {"NCCL_IB_HCA": "mlx5_0"}}
    assert not network.judge_settings(same)
    (one,) = network.judge_settings({**same, "c": {}})
    assert one.verdict == "problem"
    assert "(not set) on c" in one.value


def test_links_are_read_from_the_kernel(tmp_path: Path) -> None:
    port = tmp_path / "infiniband" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    eth0 = tmp_path / "net" / "eth0"
    eth0.mkdir(parents=True)
    (eth0 / "speed").write_text("25000\n")
    facts = network.gather_network({"NCCL_DEBUG": "INFO", "HTTPS_PROXY": "u:p@x"}, sys=tmp_path)
    assert network.fastest_link(facts) == 400.0
    assert facts["settings"] == {"NCCL_DEBUG": "INFO"}
    assert facts["proxies"] == ["HTTPS_PROXY"]
    assert "u:p" not in repr(facts)


def test_a_lock_held_by_flock_is_what_the_folder_check_sees(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            folder._locks(path)
