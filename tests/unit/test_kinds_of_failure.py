"""Failures are told apart by their own words, and each says what helps."""

from __future__ import annotations

import pytest

from launch.kinds_of_failure import kind_of, kind_of_cause
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord

IN_OURS = """Traceback (most recent call last):
  File "/usr/lib/python3.11/runpy.py", line 88, in _run_code
  File "/opt/env/lib/python3.11/site-packages/trainer/loop.py", line 9, in fit
  File "/opt/env/lib/python3.11/site-packages/torch/nn/modules/module.py", line 9, in _call_impl
"""
IN_THEIRS = """Traceback (most recent call last):
  File "/home/me/longhaul/trainer/loop.py", line 9, in fit
  File "/home/me/words/my_task.py", line 7, in loss_sum
  File "/opt/env/lib/python3.11/site-packages/torch/nn/functional.py", line 9, in cross_entropy
"""
WATCHDOG = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST, "
    "NumelIn=131072000, NumelOut=131072000, Timeout(ms)=600000) ran for 600081 milliseconds"
)
REMOTE = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited or "
    "there was a network error, NCCL version 2.26.2\nncclRemoteError: A call failed possibly due to"
)
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]"


def error(
    kind: str, message: str, *, code: int = Exit.FAILED, traceback: str = IN_OURS
) -> ErrorRecord:
    return ErrorRecord(1.0, 1, "n1", kind, message, int(code), traceback=traceback)


@pytest.mark.parametrize(
    ("kind", "message", "name"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
        ("RuntimeError", "CUDA error: out of memory", "out of memory"),
        ("OutOfMemory", "ended by the kernel: memory ran out", "out of memory of the machine"),
        ("RuntimeError", "Allocator: can't allocate memory", "out of memory of the machine"),
        ("DistBackendError", REMOTE, "communication (NCCL or gloo)"),
        ("DistBackendError", WATCHDOG, "communication (NCCL or gloo)"),
        ("RuntimeError", GLOO, "communication (NCCL or gloo)"),
        ("WorldError", "rank 3 did not come", "communication (NCCL or gloo)"),
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered", "bad GPU"),
        ("DistBackendError", "NCCL: CUDA error: uncorrectable ECC error", "bad GPU"),
        ("RuntimeError", "GPU 0000:3b:00.0 has fallen off the bus", "bad GPU"),
        ("ReplicasDiffer", "rank 2 holds other weights", "bad GPU"),
        ("OSError", "[Errno 28] No space left on device: 'a.bin'", "disk full"),
        ("SaveFailed", "step 10: rank 1: [Errno 122] Disk quota exceeded", "disk full"),
        ("SaveFailed", "step 10: rank 1: [Errno 5] Input/output error", "storage"),
        ("DataError", "a.jsonl line 7: NCCL, gloo, no space left on device", "data"),
        ("NonFiniteStep", "3 steps in 20", "numbers that cannot be right"),
        ("Hung", "stood still in step 9; socket timeout", "hang"),
        ("Killed", "killed by signal 9 (SIGKILL)", "killed from outside"),
        ("NodeLost", "was lost with node n2", "lost machine"),
        ("NotTaken", "sbatch did not take the job: Socket timed out", "not taken"),
        ("Exited", "exited with code 1 and left no error.json", "end without an error"),
        ("ZeroDivisionError", "division by zero", "Longhaul itself"),
    ],
)  # fmt: skip
def test_the_kind_of_a_failure(kind: str, message: str, name: str) -> None:
    found = kind_of(error(kind, message))
    assert found.name == name
    assert found.helps


def test_an_error_of_the_users_code_is_told_from_ours() -> None:
    theirs = error("IndexError", "index 7 is out of bounds", traceback=IN_THEIRS)
    assert kind_of(theirs).name == "user code"
    assert kind_of(error("IndexError", "index 7 is out of bounds")).name == "Longhaul itself"
    assert kind_of(error("ConfigError", "no", code=Exit.REFUSED)).name == "settings"


def test_what_is_no_failure_has_a_kind_too() -> None:
    names = {cause: kind_of_cause(cause) for cause in ("preempt", "time_limit", "crash", None)}
    assert [kind.name if kind else "" for kind in names.values()] == [
        "preempted",
        "time limit",
        "",
        "",
    ]
