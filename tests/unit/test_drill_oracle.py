"""The bench's oracle: each check is silent about what is right, and fails on what is planted."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.drills.oracle.checkpoints import wrong_checkpoints
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.ending import Ending, wrong_endings
from launch.drills.oracle.ledger import wrong_ledger
from launch.drills.oracle.leftovers import Seen, left_over, look
from launch.drills.oracle.losses import wrong_losses
from launch.drills.oracle.recovery import (
    recoveries,
    seconds_to_first_step,
    seconds_to_recover,
    slow_recoveries,
    steps_redone,
)
from launch.drills.oracle.samples import Consumed, wrong_samples
from trainer.records.account import Account
from trainer.records.ledger import Event


def step(number: int, loss: float, *, attempt: int = 1, at: float = 0.0) -> dict[str, Any]:
    return {"step": number, "loss": loss, "attempt": attempt, "time": at}


# --- 1: losses -------------------------------------------------------------------------------

REFERENCE = {1: 4.0, 2: 3.0, 3: 0.1 + 0.2}


def test_equal_losses_pass_also_where_a_step_was_made_twice() -> None:
    lines = [step(1, 4.0), step(2, 3.0), step(2, 3.0, attempt=2), step(3, 0.1 + 0.2, attempt=2)]
    assert wrong_losses(lines, REFERENCE) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([step(1, 4.0), step(2, 3.0), step(3, 0.3)], r"step 3 of attempt 1: loss 0\.3 instead"),
        ([step(1, 4.0), step(2, math.nextafter(3.0, 4.0)), step(3, 0.1 + 0.2)], "step 2"),
        ([step(1, 4.0), step(3, 0.1 + 0.2)], r"no loss of step 2 \(1 missing\)"),
        ([step(n, x) for n, x in REFERENCE.items()] + [step(4, 1.0)], "step 4 was never to be"),
        (
            [step(2, 3.1), *(step(n, x, attempt=2) for n, x in REFERENCE.items())],
            "step 2 of attempt 1",
        ),
        ([step(1, None), step(2, 3.0), step(3, 0.1 + 0.2)], "loss None"),  # type: ignore[arg-type]
    ],
)
def test_a_loss_that_differs_in_its_last_bit_is_found(lines: list[Any], said: str) -> None:
    (problem,) = wrong_losses(lines, REFERENCE)
    assert re.search(said, problem), problem


def test_a_skipped_step_may_say_what_it_will() -> None:
    assert wrong_losses([step(1, 4.0), step(3, 0.1 + 0.2)], REFERENCE, skipped=[2]) == []


# --- 2: tensors ------------------------------------------------------------------------------


def diff(*, differing: int = 0, step: int = 30, only: list[str] | None = None) -> dict[str, Any]:
    one = {"name": "w", "kind": "exp_avg", "differing": differing, "elements": 9, "largest": 0.1}
    return {"steps": [step, 30], "only_in": {"first": only or [], "second": []}, "tensors": [one]}


def test_equal_tensors_pass() -> None:
    assert wrong_tensors(diff(), step=30) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (diff(differing=1), "exp_avg of w: 1 of 9 elements differ"),
        (diff(step=25), "of steps [25, 30], not both of 30"),
        (diff(only=["bias"]), "tensor bias is only in the first"),
        (diff() | {"tensors": []}, "no tensor was compared"),
    ],
)
def test_a_tensor_that_differs_is_found(found: dict[str, Any], said: str) -> None:
    assert said in "; ".join(wrong_tensors(found, step=30))


# --- 3: samples ------------------------------------------------------------------------------


def consumed(*steps: int, pid: int = 10, at: float = 0.0, world: int = 2) -> list[Consumed]:
    """Steps of 4 samples, two a rank; a process of each rank."""
    return [
        Consumed(rank, world, pid + rank, at + s + rank / 10, (4 * (s - 1) + 2 * rank + i,))
        for s in steps
        for rank in range(2)
        for i in range(2)
    ]


def test_each_sample_once_over_two_attempts_of_which_one_went_back() -> None:
    lines = consumed(1, 2, 3) + consumed(2, 3, 4, pid=20, at=100)
    assert wrong_samples(lines, batch=4, steps=4) == []


def test_another_world_size_is_another_generation() -> None:
    alone = [Consumed(0, 1, 30, 100.0 + n, (n,)) for n in range(4, 12)]
    assert wrong_samples(consumed(1, 2) + alone, batch=4, steps=3) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (consumed(1, 3), "sample 4 was consumed never (4 such)"),
        (consumed(1, 2, 2, 3), "sample 4 was consumed more than once (4 such)"),
        (consumed(1, 2, 3, 4), "sample 12 was consumed and should not have been"),
        (consumed(1, 2) + consumed(4, pid=20, at=9), "sample 8 was consumed never"),
        (consumed(1, 2, 3)[:-1], "sample 11 was consumed never (1 such)"),
    ],
)
def test_a_sample_lost_or_consumed_twice_is_found(lines: list[Consumed], said: str) -> None:
    assert said in "; ".join(wrong_samples(lines, batch=4, steps=3))


def test_a_skipped_sample_that_was_consumed_is_found() -> None:
    assert wrong_samples(consumed(1, 3), batch=4, steps=3, skipped=range(4, 8)) == []
    assert wrong_samples(consumed(1, 2, 3), batch=4, steps=3, skipped=range(4, 8))


# --- 4: checkpoints --------------------------------------------------------------------------


def test_whole_checkpoints_pass() -> None:
    whole = [{"step": 5, "problems": []}, {"step": 10, "problems": []}]
    names = ["step-00000005", "step-00000010", "latest.json", "quarantine"]
    assert wrong_checkpoints(whole, names=names, newest=10) == []


def test_a_checkpoint_that_is_damaged_missing_or_half_is_found() -> None:
    verified = [{"step": 5, "problems": ["rank-00000.safetensors: cut short"]}]
    found = wrong_checkpoints(
        verified,
        names=["step-00000010.incoming-0001", ".latest.json.partial", "step-00000001.removing"],
        unexplained=["step-00000002.1"],
        newest=10,
    )
    assert len(found) == 6
    assert "step 5 is damaged" in found[0]
    assert "the newest checkpoint is not step 10" in found[1]
    assert "does not say why" in found[-1]


# --- 5: leftovers ----------------------------------------------------------------------------


def test_what_was_there_before_is_nobodys_leftover(tmp_path: Path) -> None:
    seen = Seen(frozenset({"7 old"}), frozenset({80}), frozenset({"f"}), frozenset({"t"}))
    assert left_over(seen, seen) == []
    assert left_over(Seen(), Seen()) == []


def test_a_process_a_port_a_lock_a_file_and_shared_memory_are_found(tmp_path: Path) -> None:
    run, temporary = tmp_path / "run", tmp_path / "tmp"
    run.mkdir()
    temporary.mkdir()
    (run / "lock").touch()
    before = look(run, temporary=[temporary])
    program = (
        "import fcntl, socket, sys, time\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "f = open(sys.argv[1] + '/lock'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print(s.getsockname()[1], flush=True); time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", program, str(run)]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    shared = Path(f"/dev/shm/longhaul-drill-test-{os.getpid()}")
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        (temporary / "half").touch()
        shared.touch()
        found = "\n".join(left_over(before, look(run, temporary=[temporary])))
        assert f"process {child.pid} " in found
        assert f"port {port} is still listened on" in found
        assert f"a lock is still held on {run / 'lock'}" in found
        assert f"{temporary / 'half'} was left behind" in found
        assert f"shared memory {shared} was not given back" in found
        with shared.open() as held:  # in use: nobody has forgotten it
            assert str(shared) not in "\n".join(left_over(before, look(run, temporary=[temporary])))
            del held
    finally:
        child.kill()
        child.communicate()
        shared.unlink()
    (temporary / "half").unlink()
    assert left_over(before, look(run, temporary=[temporary])) == []


# --- 6: the ledger ---------------------------------------------------------------------------


def ledger(*, wall: float = 10.0) -> list[Event]:
    return [
        Event("attempt", 1, 0.0, 100.0, "b"),
        Event("ended", 1, wall, 100.0 + wall, "b", {"exit_code": 0}),
    ]


def spent(*, step: float = 9.95, steps: int = 3, idle: float = 0.0) -> Account:
    return Account(10.0, {"step": step, "idle": idle}, steps, 0)


def test_a_ledger_that_adds_up_passes() -> None:
    lines = [step(n, 0.0) for n in (1, 2, 3)]
    assert wrong_ledger(ledger(), spent(), lines) == []
    assert wrong_ledger(ledger(), spent(steps=4), lines) == []  # killed before its line was written


@pytest.mark.parametrize(
    ("events", "account", "said"),
    [
        (ledger(wall=11.0), spent(), "accounts for 9.95 or more of 11.00 s"),
        (ledger(), spent(step=9.8), "accounts for 9.80"),
        (ledger(), spent(step=10.4, idle=-0.4), "-0.40 s of idle"),
        (ledger(), spent(steps=1), "counts 1 steps, metrics.jsonl has 3"),
        (ledger(), spent(steps=5), "counts 5 steps"),
        ([], spent(), "there is no ledger"),
    ],
)
def test_time_or_steps_that_nobody_accounts_for_are_found(
    events: list[Event], account: Account, said: str
) -> None:
    assert said in "; ".join(wrong_ledger(events, account, [step(n, 0.0) for n in (1, 2, 3)]))


# --- 7: endings ------------------------------------------------------------------------------


def test_attempts_end_as_they_must() -> None:
    lines = [{"exit_code": 76, "why": "rank 1 failed: Killed"}, {"exit_code": 0, "why": "finished"}]
    wanted = [Ending(76, r"rank \d failed"), Ending(0, "finished")]
    assert wrong_endings(lines, wanted, code=0) == []
    assert wrong_endings(lines[:1], wanted) == ["1 attempts instead of 2"]
    assert "ended with 76, not 75" in wrong_endings(lines, [Ending(75, ""), wanted[1]])[0]
    assert "has no 'rank 0'" in wrong_endings(lines, [Ending(76, "rank 0"), wanted[1]])[0]
    assert wrong_endings(lines, wanted, code=76) == ["the command returned 76, not 0"]


# --- 8: recovery -----------------------------------------------------------------------------


def test_time_to_recover_is_from_the_fault_to_a_step_that_is_new() -> None:
    lines = [step(1, 0, at=10.0), step(2, 0, at=11.0)]
    lines += [step(2, 0, attempt=2, at=21.0), step(3, 0, attempt=2, at=22.5)]
    assert seconds_to_first_step(11.5, lines) == pytest.approx(9.5)
    assert seconds_to_recover(11.5, lines) == pytest.approx(11.0)
    assert steps_redone(lines) == 1
    assert recoveries([11.2, 11.5], lines) == [pytest.approx(9.5)]  # of the second only
    assert recoveries([11.5, 23.0], lines) == [pytest.approx(9.5), None]
    assert seconds_to_recover(23.0, lines) is None
    assert slow_recoveries([9.5, 11.0], bound_s=15) == []
    assert slow_recoveries([16.0, None], bound_s=15) == [
        "it did not recover",
        "recovered after 16.0 s, more than 15 s",
    ]
