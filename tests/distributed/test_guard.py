"""The numerics guard in real runs: one bad element, a poisoned range of data, a flipped bit."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.helpers.guard_ranks import Seen, Wanted, attempt_all
from tests.helpers.ranks import RankPool
from tests.helpers.tiny_run import tiny_run
from trainer.faultpoints import Fault
from trainer.guard.incident import read_incident
from trainer.records.run_files import RunFiles

Make = Callable[..., RunFiles]

_COMMON = ("evals.held_out_rows=0", "evals.sample_tokens=0", "checkpoint.asynchronous=false")
_LADDER = (
    *("guard=strict", "guard.window=8", "guard.max_skips=3", "guard.skip_window=6"),
    *("steps.total=16", "steps.save_every=1", "checkpoint.keep_last=2"),
    *("precision=fp32", "schedule=constant", "model.dropout=0.0"),
)


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Make:
    folder = tmp_path_factory.getbasetemp() / "guard"
    folder.mkdir(exist_ok=True)
    test = request.node.name.replace("[", "-").replace("]", "")

    def run(name: str, *overrides: str, attempt: int = 1) -> RunFiles:
        settings = (*_COMMON, *overrides)
        return tiny_run(folder, settings, name=f"{test[-20:]}-{name}", attempt=attempt)

    return run


def _all(ranks: RankPool, size: int, wanted: Sequence[Wanted]) -> list[list[Seen]]:
    """For each attempt what all ranks saw; they must have seen the same, but for their shares."""
    by_rank = ranks.run(size, attempt_all, wanted)
    seen = [list(one) for one in zip(*by_rank, strict=True)]
    for one in seen:
        for rank in one[1:]:
            assert repr(replace(rank, state="")) == repr(replace(one[0], state=""))
    return seen


# element 700 is in the embedding, 20000 in a layer; a damaged loss leaves its gradient alone
_BAD = {
    "nan": Fault("step.gradient", "nan", rank=1, hit=2, step=3, value=700),
    "inf": Fault("step.gradient", "inf", rank=0, hit=1, step=3, value=20000),
    "loss": Fault("step.forward", "nan", rank=1, hit=1, step=3),
}
_ENGINES = [("zero0", "fp32"), ("zero1", "bf16"), ("zero2", "bf16"), ("zero3", "fp32")]


def test_one_bad_element_on_one_rank_is_a_step_that_was_left_out(
    ranks: RankPool, make: Make
) -> None:
    names = [(engine, how) for engine, _ in _ENGINES for how in ("reference", "nan")]
    names += [("zero0", "loss"), ("zero1", "inf"), ("zero3", "loss")]
    kinds = dict(_ENGINES)
    runs = [
        make(f"{e}-{how}", f"engine={e}", f"precision={kinds[e]}", "steps.total=4")
        for e, how in names
    ]
    wanted = [
        Wanted(run.root, leave_out=3)
        if how == "reference"
        else Wanted(run.root, faults=(_BAD[how],))
        for run, (_, how) in zip(runs, names, strict=True)
    ]
    found = dict(zip(names, _all(ranks, 2, wanted), strict=True))
    for (engine, how), seen in found.items():
        expected = found[engine, "reference"]
        assert seen[0].applied == [True, True, False, True], (engine, how)
        assert [r.state for r in seen] == [r.state for r in expected], (engine, how)
        assert seen[0].rates == expected[0].rates
        assert seen[0].tokens_seen == expected[0].tokens_seen
        assert seen[0].losses[3:] == expected[0].losses[3:], (engine, how)
        if how != "reference":
            assert [e[:3] for e in seen[0].guard] == [(3, "skip", "non_finite")], (engine, how)
            assert seen[0].guard[0][3] == (12, 18)
    assert len({r[0].state for r in found.values()}) == len(_ENGINES)


def test_a_kill_after_a_step_that_was_left_out_changes_no_bit(ranks: RankPool, make: Make) -> None:
    """Adam's bias correction counts updates, not steps: the two differ from here on."""
    settings = ("engine=zero2", "precision=bf16", "steps.save_every=3", "schedule=constant")
    whole, cut = make("whole", *settings), make("cut", *settings)
    make("cut", *settings, attempt=2)
    bad, kill = _BAD["nan"], Fault("step.begin", "raise", step=5)
    wanted = [
        Wanted(whole.root, faults=(bad,)),
        Wanted(cut.root, faults=(bad, kill)),
        Wanted(cut.root, attempt=2),
    ]
    once, first, second = _all(ranks, 2, wanted)
    assert first[0].checkpoints == [3]
    assert second[0].losses == once[0].losses[3:]
    assert [r.state for r in second] == [r.state for r in once]


def test_an_incident_holds_what_each_rank_had(ranks: RankPool, make: Make) -> None:
    run = make("bundle", "engine=zero1")
    [[seen, _]] = _all(ranks, 2, [Wanted(run.root, faults=(_BAD["loss"],))])
    place = run.incidents / "step-00000003"
    files = sorted(place.iterdir())
    assert [f.name for f in files] == ["rank-00000.json", "rank-00001.json"]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    incident = read_incident(run.incidents, 3)
    assert incident.is_whole
    assert math.isnan(incident.loss)
    assert math.isfinite(incident.grad_norm)
    by_rank = {r: [m.loss for m in steps] for r, steps in incident.by_rank.items()}
    assert [math.isnan(v) for v in by_rank[1]] == [True, False]
    assert not any(math.isnan(v) for v in by_rank[0])
    indices = [
        s
        for steps in incident.by_rank.values()
        for m in steps
        if m.batch
        for s in m.batch.sample_indices
    ]
    assert sorted(indices) == list(range(12, 18))
    assert seen.guard[0][3] == (12, 18)


def test_a_poisoned_range_is_skipped_then_left_out(ranks: RankPool, make: Make) -> None:
    """Spikes in steps 9 to 12: two are skipped, the third goes back to step 8, without 9 to 11."""
    engine = "engine=zero2"
    clean, whole, cut = (make(n, engine, *_LADDER) for n in ("clean", "whole", "cut"))
    make("cut", engine, *_LADDER, attempt=2)
    background = make("background", engine, *_LADDER, "checkpoint.asynchronous=true")
    bad = (48, 72)  # of 6 a step
    kill = Fault("step.begin", "raise", step=11)
    wanted = [
        Wanted(clean.root),
        Wanted(whole.root, poisoned=bad),
        Wanted(cut.root, poisoned=bad, faults=(kill,)),
        Wanted(cut.root, poisoned=bad, attempt=2),
        Wanted(background.root, poisoned=bad),
    ]
    undisturbed, once, first, second, late = _all(ranks, 2, wanted)
    assert undisturbed[0].guard == []
    expected = [
        (9, "skip", "spike", (48, 54)),
        (10, "skip", "spike", (54, 60)),
        (11, "skip", "spike", (60, 66)),
        (11, "rewind", "spike", (48, 66)),
        (9, "skip", "spike", (66, 72)),
    ]
    assert once[0].guard == expected
    assert once[0].steps == [*range(1, 12), *range(9, 17)]
    assert once[0].cursor["skipped"] == [[48, 66]]
    assert once[0].cursor["next_sample"] == 16 * 6 + 18
    # A kill in the middle of the ladder, after two skips and with two checkpoints since, changes
    # no decision and no bit; nor does a save that goes on while training does.
    assert first[0].error.startswith("Drilled")
    assert first[0].checkpoints == [8, 9, 10]  # 8 is kept: the run may go back to it
    assert first[0].guard + second[0].guard == expected
    assert [r.state for r in second] == [r.state for r in once]
    assert second[0].losses[-4:] == once[0].losses[-4:]
    assert [r.state for r in late] == [r.state for r in once]
    assert late[0].guard == expected
    assert abs(once[0].losses[-1] / undisturbed[0].losses[-1] - 1) < 0.1
    aside = sorted(p.name for p in (whole.checkpoints / "quarantine").iterdir())
    assert aside == ["step-00000009.1", "step-00000010.1"]


def test_what_no_way_back_mends_ends_the_run(ranks: RankPool, make: Make) -> None:
    always = Fault("step.forward", "nan", step=9, times=0)
    run = make("ends", "engine=zero1", *_LADDER, "guard.max_rewinds=1")
    early = make("early", "engine=zero1", *_LADDER, "steps.save_every=0")
    seen, none = _all(ranks, 2, [Wanted(r.root, faults=(always,)) for r in (run, early)])
    assert seen[0].error.startswith("NonFiniteStep: step 11: loss nan, gradient norm")
    assert "Going back did not help (1 times, last from step 11 to 8" in seen[0].error
    assert "longhaul replay" in seen[0].error
    assert seen[0].checkpoints[-1] <= 10
    assert "No checkpoint is older than step 9, the first of them" in none[0].error


def test_a_flipped_bit_in_one_replica_is_found_and_never_saved(ranks: RankPool, make: Make) -> None:
    three = ("resources.ranks_per_node=3", "precision=fp32")
    clean, found, unsaved, again = (
        make(name, "engine=zero0", *three, "steps.save_every=2", f"guard.replica_check_every={m}")
        for name, m in (("clean", 0), ("found", 2), ("unsaved", 100), ("blind", 0))
    )
    make("found", "engine=zero0", *three, "steps.save_every=2", attempt=2)
    sharded = [
        make(f"zero{s}", f"engine=zero{s}", *three, "guard.replica_check_every=4")
        for s in (1, 2, 3)
    ]
    flip = Fault("step.update", "flip", rank=2, step=3, value=5)
    late = replace(flip, step=4)
    wanted = [
        Wanted(clean.root),
        Wanted(found.root, faults=(flip,)),
        Wanted(found.root, attempt=2),
        Wanted(unsaved.root, faults=(late,)),
        Wanted(again.root, faults=(flip,)),
        *(Wanted(run.root, faults=(late,)) for run in sharded),
    ]
    undisturbed, seen, resumed, kept, blind, *others = _all_but_states(ranks, 3, wanted)
    said = "the weights are not the same on all ranks: rank 2 differs from the other 2, in"
    assert f"ReplicasDiffer: step 4: {said} 1 tensors" in seen[0].error
    assert seen[0].checkpoints == [2]  # none from the state that is wrong since step 3
    assert [r.state for r in resumed] == [r.state for r in undisturbed]
    assert f"step 4: {said}" in kept[0].error  # found by the check before the save
    assert kept[0].checkpoints == [2]
    assert blind[0].error == ""  # without the check nobody notices: the fault is real
    assert blind[2].state != undisturbed[2].state
    for one in others:
        assert f"step 4: {said}" in one[0].error


def _all_but_states(ranks: RankPool, size: int, wanted: Sequence[Wanted]) -> list[list[Seen]]:
    return [list(one) for one in zip(*ranks.run(size, attempt_all, wanted), strict=True)]


def test_a_rank_that_applies_alone_is_found(ranks: RankPool, make: Make) -> None:
    run = make("alone", "engine=zero0", "precision=fp32")
    wanted = Wanted(run.root, faults=(_BAD["loss"],), disobeys=1)
    for seen in ranks.run(2, attempt_all, [wanted]):
        assert "ReplicasDiffer: 1 of 2 ranks applied the step before this one" in seen[0].error
