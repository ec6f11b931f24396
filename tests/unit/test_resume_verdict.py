"""What is said about a resume: each item that can be lost, by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.verify.resumed import Evidence, Verdict, as_text, verdict_on

_STEPS = range(1, 5)
WHOLE = Evidence(
    losses={step: 5.0 - step for step in _STEPS},
    rates={step: 0.1 / step for step in _STEPS},
    samples={step: (2 * step, 2 * step + 1) for step in _STEPS},
    randomness={(step, 2 * step): 100 + step for step in _STEPS},
    world_size=2,
)


def later(evidence: Evidence, first: int = 3) -> Evidence:
    return Evidence(
        losses={step: x for step, x in evidence.losses.items() if step >= first},
        rates={step: x for step, x in evidence.rates.items() if step >= first},
        samples={step: x for step, x in evidence.samples.items() if step >= first},
        randomness={key: x for key, x in evidence.randomness.items() if key[0] >= first},
        world_size=evidence.world_size,
    )


RESUMED = later(WHOLE)


def judged(resumed: Evidence = RESUMED, **differ: object) -> Verdict:
    said: dict[str, object] = {"loaded": [], "last": [], "precision": None} | differ
    return verdict_on(WHOLE, resumed, **said)  # type: ignore[arg-type]


def test_a_resume_that_lost_nothing_passes() -> None:
    verdict = judged()
    assert verdict.passed
    assert "bit for bit the same" in as_text(verdict)[-1]


@pytest.mark.parametrize(
    ("item", "verdict"),
    [
        ("moments", judged(loaded=["norm exp_avg", "norm exp_avg_sq"])),
        ("weights", judged(loaded=["norm master"])),
        ("cursor", judged(replace(RESUMED, samples={3: (0, 1), 4: (2, 3)}))),
        ("learning rate", judged(replace(RESUMED, rates={3: 0.1, 4: 0.05}))),
        ("rng", judged(replace(RESUMED, randomness={(3, 6): 1, (4, 8): 104}))),
    ],
)
def test_what_was_lost_is_named(item: str, verdict: Verdict) -> None:
    assert not verdict.passed
    assert verdict.lost == (item,)
    assert f"LOST: {item}: " in "\n".join(as_text(verdict))


def test_one_other_loss_or_tensor_is_enough() -> None:
    other = replace(RESUMED, losses={3: 2.0, 4: 1.0000001})
    verdict = judged(other, last=["norm exp_avg"])
    assert verdict.different_losses == (4,)
    said = "\n".join(as_text(verdict))
    assert "step 4: another loss; up to 1.0e-07 of it" in said
    assert "the last checkpoints differ in norm exp_avg" in said
    assert not judged(other).passed
    assert not judged(last=["norm exp_avg"]).passed


def test_on_other_ranks_losses_are_bounded() -> None:
    near, far = (replace(RESUMED, losses={3: 2.0, 4: 1.0 + off}) for off in (9e-6, 2e-5))
    assert judged(near, precision="fp32").passed
    assert not judged(far, precision="fp32").passed
    assert judged(far, precision="bf16").passed


def test_a_run_that_began_anew_or_stopped_early_has_not_resumed() -> None:
    assert not judged(WHOLE).passed
    assert "did not resume from a checkpoint" in "\n".join(as_text(judged(WHOLE)))
    assert not judged(replace(RESUMED, losses={3: 2.0})).passed
    assert not judged(replace(RESUMED, losses={})).passed
