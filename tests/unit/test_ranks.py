"""What a rank is told, and what a machine can give."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.machine import check_devices, device_for, free_port, num_gpus
from launch.node.driven import Meeting
from launch.node.ranks import rank_environment
from launch.node.ranks_spec import RanksSpec, read_spec, spec_text
from launch.table import age_text, text_of
from trainer.errors import Refused


def spec(**changed: object) -> RanksSpec:
    given = {
        "module": "trainer.worker",
        "nodes": 2,
        "ranks_per_node": 4,
        "device": "cpu",
        "threads_per_rank": 3,
        "rendezvous_port": 0,
        "grace_s": 60.0,
    }
    return RanksSpec(**(given | changed))  # type: ignore[arg-type]


def test_five_variables_say_who_a_rank_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    env = rank_environment(spec(), rank=5, local_rank=1, meeting=Meeting("127.0.0.1", 2345))
    assert [env[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["5", "8", "1"]
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", "2345")
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["DS_ACCELERATOR"] == "cpu"
    assert env["PYTHONWARNINGS"] == "ignore::FutureWarning"


def test_a_gpu_rank_is_not_told_to_be_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    env = rank_environment(
        spec(device="cuda"), rank=0, local_rank=0, meeting=Meeting("127.0.0.1", 2345)
    )
    assert "DS_ACCELERATOR" not in env


def test_the_spec_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    path.write_text(spec_text(spec()))
    assert read_spec(path) == spec()


def test_a_port_is_free_or_refused() -> None:
    assert 1024 <= free_port(0) < 65536
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} on 127.0.0.1 is taken"):
            free_port(port)
    assert free_port(port) == port


@pytest.mark.parametrize(
    ("visible", "count"), [("", 0), ("-1", 0), ("3", 1), ("0,2", 2), ("GPU-a,MIG-b", 2)]
)
def test_visible_devices_are_what_counts(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_gpus() == count
    assert device_for("auto") == ("cuda" if count else "cpu")
    assert device_for("cpu") == "cpu"
    check_devices("cpu", ranks_per_node=9)
    check_devices("cuda", ranks_per_node=count)
    fix = f"ranks_per_node={count}" if count else "device=cpu"
    with pytest.raises(Refused, match=f"this machine has {count} CUDA device(?s:.)*try: .*{fix}"):
        check_devices("cuda", ranks_per_node=count + 1)


def test_tables_line_up() -> None:
    rows = [{"run": "a", "tokens/s": 12345.6, "why": None}, {"run": "longer", "tokens/s": 1.0}]
    assert text_of(rows) == "run     tokens/s  why\na       12,346    -\nlonger  1         -"


def test_ages_for_people() -> None:
    assert [age_text(s) for s in (5, 90, 7200, 200000)] == ["5 s", "2 min", "2 h", "2 d"]
