"""What the guard calls an anomaly, and which rung of the ladder follows. No engine, no disk."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
import torch

from tests.helpers.guards import guard_rules
from trainer.checkpoint.folder import doomed
from trainer.engine.base import StepStats
from trainer.guard.guard import Guard, Rewound
from trainer.guard.judge import Accepted, Numbers, judge
from trainer.guard.replicas import fingerprints
from trainer.remedy import causes_told

NAN, INF = math.nan, math.inf


def _do(guard: Guard, step: int, loss: float, norm: float = 1.0) -> str:
    """One step, as the loop and an engine make it. Returns the action."""
    applied = math.isfinite(norm) and guard.wants(loss)(norm)
    verdict = guard.note(step, loss, StepStats(norm, applied))
    assert applied == (verdict.action in ("apply", "log")), "asked and noted must agree"
    return verdict.action


def _clean(step: int, rng: random.Random) -> tuple[float, float]:
    """A loss curve and norms as runs have them: fast, then slow, with noise and heavy tails."""
    loss = 2.0 + 6.0 * math.exp(-step / 150) + rng.gauss(0, 0.06)
    return loss, math.exp(rng.gauss(-1.0 + 2.0 * math.exp(-step / 30), 0.25))


@pytest.mark.parametrize("seed", range(5))
def test_clean_runs_raise_no_alarm(seed: int) -> None:
    guard, rng = Guard(guard_rules(window=128)), random.Random(seed)
    actions = {_do(guard, step, *_clean(step, rng)) for step in range(1, 3001)}
    assert actions == {"apply"}


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (2.0, NAN), (2.0, INF)])
def test_one_bad_number_costs_one_step(loss: float, norm: float) -> None:
    """In a guard whose window takes it in, a NaN hides behind itself: 129 steps were lost."""
    guard = Guard(guard_rules())
    actions = [_do(guard, s, *((loss, norm) if s == 21 else (2.0, 1.0))) for s in range(1, 60)]
    assert [s for s, action in enumerate(actions, 1) if action != "apply"] == [21]
    assert guard.state.skipped == 1


def test_a_great_spike_does_not_hide_a_small_one() -> None:
    rng = random.Random(0)
    guard = Guard(guard_rules(window=32, max_skips=9))
    losses = [3.0 + rng.gauss(0, 0.05) for _ in range(60)]
    losses[40], losses[44] = 30.0, 5.0
    actions = [_do(guard, s, loss) for s, loss in enumerate(losses)]
    assert [s for s, action in enumerate(actions) if action == "skip"] == [40, 44]


def test_a_norm_alone_is_enough_and_few_values_are_not() -> None:
    guard = Guard(guard_rules(window=16))
    assert [_do(guard, s, 2.0, 50.0 ** (s == 3)) for s in range(4)] == ["apply"] * 4  # too early
    for step in range(4, 30):
        assert _do(guard, step, 2.0, 1.0) == "apply"
    assert _do(guard, 30, 2.0, 50.0) == "skip"


def test_what_falls_is_no_spike() -> None:
    accepted = Accepted((4.0,) * 20, (0.0,) * 20)
    assert judge(Numbers(1.0, 0.01), accepted, sigmas=5, fewest=8) is None


def test_logged_spikes_are_applied_and_a_new_level_is_learned() -> None:
    guard = Guard(guard_rules(spike="log", window=16))
    for step in range(20):
        _do(guard, step, 2.0)
    assert [_do(guard, step, 4.0) for step in range(20, 25)] == ["log"] * 5
    assert [_do(guard, step, 4.0) for step in range(25, 60)] == ["apply"] * 35
    assert _do(guard, 60, 8.0) == "log"
    assert guard.state.skipped == 0


def test_the_ladder() -> None:
    guard = Guard(guard_rules(max_skips=3, skip_window=10, max_rewinds=2))
    for step in range(1, 20):
        assert _do(guard, step, 2.0) == "apply"
    saved = json.loads(json.dumps(guard.saved()))
    for turn in range(2):
        assert [_do(guard, s, NAN) for s in (20, 21)] == ["skip", "skip"]
        assert guard.first_anomaly == 20
        verdict = guard.note(22, NAN, StepStats(NAN, False))
        assert (verdict.action, verdict.first) == ("rewind", 20)
        done = Rewound(at=22, to=19, first=20, start=turn, stop=turn + 3)
        guard.rewound(saved, done)
        assert guard.first_anomaly is None
        assert guard.state.accepted == Guard(guard_rules(), saved).state.accepted
    assert [_do(guard, s, NAN) for s in (20, 21, 22)] == ["skip", "skip", "stop"]


def test_a_quiet_time_gives_the_ways_back_again() -> None:
    guard = Guard(guard_rules(max_skips=1, skip_window=10, max_rewinds=1))
    assert _do(guard, 5, NAN) == "rewind"
    guard.rewound(None, Rewound(at=5, to=4, first=5, start=0, stop=1))
    for step in range(5, 16):
        _do(guard, step, 2.0)
    assert _do(guard, 16, NAN) == "rewind"
    guard.rewound(guard.saved(), Rewound(at=16, to=15, first=16, start=0, stop=1))
    assert _do(guard, 17, NAN) == "stop"


def test_skips_far_apart_do_not_add_up() -> None:
    guard = Guard(guard_rules(max_skips=2, skip_window=10))
    actions = [_do(guard, s, NAN if s % 11 == 0 else 2.0) for s in range(1, 60)]
    assert "rewind" not in actions
    assert guard.state.skipped == 5
    assert guard.first_anomaly == 55
    _do(guard, 65, 2.0)
    assert guard.first_anomaly is None  # checkpoints need not be kept for it any more


def test_an_overflow_under_a_loss_scale_is_no_anomaly() -> None:
    guard = Guard(guard_rules(non_finite="stop"))
    assert guard.note(1, 2.0, StepStats(INF, False, overflowed=True)).action == "apply"
    assert guard.state.accepted == Accepted()
    assert guard.note(2, NAN, StepStats(INF, False, overflowed=True)).action == "stop"


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (2, "; longhaul replay mine --step 1 tells data, numeric and hardware causes apart"),
        (0, "; no record of it was kept for longhaul replay (guard.max_incidents)"),
    ],
)
def test_a_replay_is_advised_where_there_is_something_to_replay(kept: int, said: str) -> None:
    guard = Guard(guard_rules(non_finite="stop", max_incidents=kept))
    verdict = guard.note(1, NAN, StepStats(INF, False))
    assert verdict.action == "stop"
    assert causes_told("mine", 1, verdict) == said


@pytest.mark.parametrize("cut", range(15, 40))
def test_a_kill_changes_no_decision(cut: int) -> None:
    """The state goes through JSON, as it does in a checkpoint's manifest."""
    rng = random.Random(1)
    values = [_clean(s, rng) for s in range(200, 240)]
    for bad in (21, 25, 26, 33):
        values[bad] = (NAN, 1.0) if bad == 25 else (9.0, 1.0)
    whole, halves = Guard(guard_rules()), Guard(guard_rules())
    for step, (loss, norm) in enumerate(values):
        if step == cut:
            halves = Guard(guard_rules(), json.loads(json.dumps(halves.saved())))
        assert _do(whole, step, loss, norm) == _do(halves, step, loss, norm)
        assert whole.state == halves.state


def test_bundles_are_few() -> None:
    guard = Guard(guard_rules(max_incidents=2, max_skips=9))
    noted = [guard.note(s, NAN, StepStats(NAN, False)).bundle for s in range(4)]
    assert noted == [True, True, False, False]


def test_no_bundle_at_all_if_none_is_wanted() -> None:
    guard = Guard(guard_rules(max_incidents=0))
    assert not guard.note(1, NAN, StepStats(NAN, False)).bundle


def test_a_state_that_another_version_wrote_is_refused() -> None:
    state: dict[str, Any] = Guard(guard_rules()).saved()
    with pytest.raises(TypeError):
        Guard(guard_rules(), state | {"unknown": 1})


def test_retention_keeps_what_a_run_may_go_back_to() -> None:
    steps = [2, 4, 6, 8, 10]
    assert doomed(steps, keep_last=2, keep_every=0) == [2, 4, 6]
    assert doomed(steps, keep_last=2, keep_every=0, needed_before=6) == [2, 6]
    assert doomed(steps, keep_last=2, keep_every=0, needed_before=7) == [2, 4]
    assert doomed(steps, keep_last=2, keep_every=0, needed_before=11) == [2, 4, 6]
    assert doomed(steps, keep_last=2, keep_every=0, needed_before=1) == [2, 4, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_flipped_bit_changes_the_fingerprint(dtype: torch.dtype) -> None:
    for size in (1, 7, 64):
        tensor = torch.randn(size).to(dtype)
        (usual,) = fingerprints([("t", tensor)])
        raw = tensor.view(torch.uint8)
        for byte in range(len(raw)):
            for bit in range(8):
                raw[byte] ^= 1 << bit
                assert fingerprints([("t", tensor)]) != [usual], (byte, bit)
                raw[byte] ^= 1 << bit
        assert fingerprints([("t", tensor)]) == [usual]


def test_elements_that_change_places_change_the_fingerprint() -> None:
    tensor = torch.randn(1000)
    swapped = tensor.clone()
    swapped[[3, 700]] = swapped[[700, 3]]
    assert fingerprints([("a", tensor)]) != fingerprints([("a", swapped)])
    assert fingerprints([("a", tensor[1:])]) != fingerprints([("a", tensor[:-1])])  # unaligned too
