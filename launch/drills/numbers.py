"""Numbers that cannot be right: D26 not finite, D27 a spike, D28 a bit that flipped in memory."""

from __future__ import annotations

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, to_the_end
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.ending import Ending, wrong_endings
from launch.drills.oracle.samples import wrong_samples
from launch.drills.reference import BATCH, SAVE_EVERY, STEPS
from trainer.errors import Exit
from trainer.faultpoints import Fault

_STEPS = 12
_BAD = 7  # the step that is left out
_FAULTS = {
    "nan in an element": Fault("step.gradient", "nan", rank=1, step=_BAD, value=5000),
    "inf in an element": Fault("step.gradient", "inf", rank=0, step=_BAD, value=90000),
    "nan in the embedding": Fault("step.gradient", "nan", rank=1, step=_BAD, value=3),
    "nan in the third micro-step": Fault("step.gradient", "nan", rank=0, step=_BAD, hit=3),
    "nan in the loss only": Fault("step.forward", "nan", rank=1, step=_BAD),
}
_SPIKED = 18  # a step whose rows are poisoned
_DIFFER = Ending(Exit.FAILED, "the weights are not the same on all ranks")


def not_finite(bench: Bench) -> Result:
    """D26. Left out on all ranks alike: nothing of the state moves, the next step is normal."""
    cases = dict(list(_FAULTS.items())[: 2 if bench.short else len(_FAULTS)])
    site, wrong = bench.site, list[str]()
    finals: dict[str, dict[int, float | None]] = {}
    for number, (what, fault) in enumerate(cases.items()):
        name = f"d26-{number}"
        before = site.look(name)
        settings = ("steps.save_every=1", "checkpoint.keep_last=20", f"steps.total={_STEPS}")
        last = site.train(name, *settings, faults=[fault])
        found = wrong_samples(site.samples(name), batch=BATCH, steps=_STEPS)
        found += wrong_endings(site.attempts(name), [DONE], code=last.code)
        found += site.left_over(name, before) + bench.wrong_ledger(name)
        left_out = [x["step"] for x in site.steps(name) if not x["applied"]]
        if left_out != [_BAD]:
            found.append(f"steps {left_out} were left out, not [{_BAD}]")
        if last.code == Exit.DONE:
            found += _moved(bench, name)
        wrong += [f"{what}: {text}" for text in found]
        finals[what] = {x["step"]: x["loss"] for x in site.steps(name) if x["step"] != _BAD}
    first = next(iter(finals.values()))
    wrong += [f"{what}: not the losses of the others" for what, f in finals.items() if f != first]
    said = f"{len(cases)} kinds on one rank: 1 step left out each, state untouched, same bits after"
    return Result(len(cases), said, tuple(wrong))


def _moved(bench: Bench, name: str) -> list[str]:
    """What the step that was left out has changed: the checkpoint after it against that before."""
    root = str(bench.site.run(name).root)
    steps = (str(_BAD - 1), str(_BAD))
    diff = bench.site.json_of("trainer.commands.checkpoint", "diff", root, *steps, "--json")
    found = wrong_tensors({**diff, "steps": [_BAD, _BAD]}, step=_BAD)
    return [f"the step that was left out moved {text}" for text in found]


def spike(bench: Bench) -> Result:
    """D27. Poisoned rows are noticed at once and left out; a kill in the middle changes nothing."""
    site, wrong = bench.site, list[str]()
    sample = (_SPIKED - 1) * BATCH + 1
    spoil = f"+task.settings.spoil={{sample:{sample},how:large}}"
    settings = ("guard.spike=skip", "guard.window=16", "steps.save_every=1", spoil)
    finals = []
    kill = Fault("step.agree", "kill", rank=1, step=_SPIKED + 1, token=site.token("d27"))
    for name, faults in (("d27-alone", ()), ("d27-killed", (kill,))):
        before = site.look(name)
        last = to_the_end(bench, name, faults, *settings)
        left_out = [x["step"] for x in site.steps(name) if not x["applied"]]
        if last.code != Exit.DONE or set(left_out) != {_SPIKED}:
            wrong.append(f"{name}: returned {last.code}, left out {left_out}, not [{_SPIKED}]")
        wrong += site.left_over(name, before)
        finals.append({x["step"]: x["loss"] for x in site.steps(name)})
    if finals[0] != finals[1]:
        wrong.append("the run that was killed in the middle took other decisions")
    healthy = [x for one in bench.known.values() for x in site.steps(one.name)]
    alarms = [x["step"] for x in healthy if not x["applied"]]
    wrong += [f"step {step} of a healthy run was left out" for step in alarms]
    off = abs(finals[0][STEPS] / bench.reference.losses[STEPS] - 1) if finals[0] else 1.0
    if off > 0.01:
        wrong.append(f"the final loss is {off:.1%} off the clean run's")
    said = (
        f"left out at once; final loss {off:.2%} off the clean run's; same after a kill; "
        f"{len(alarms)} false alarms in {len(healthy)} healthy steps"
    )
    return Result(2, said, tuple(wrong))


def flipped_weights(bench: Bench) -> Result:
    """D28. A bit flips in one replica of three: that rank is named, nothing is saved from it."""
    site, name = bench.site, "d28"
    # one restart more than is the rule: here it is another machine each time
    settings = ("resources.ranks_per_node=3", "guard.replica_check_every=1", "restart.hardware=3")
    whole = bench.reference_of(*settings)
    faults = [
        Fault("step.update", "flip", rank=rank, step=3 + rank * SAVE_EVERY, value=11, token=token)
        for rank, token in enumerate(site.token(f"d28-{n}") for n in range(3))
    ]
    before = site.look(name)
    last = to_the_end(bench, name, faults, *settings)
    endings = [*[_DIFFER] * len(faults), DONE]
    wrong = bench.judge(name, endings=endings, before=before, last=last, reference=whole)
    named = sum(
        f"rank {rank} differs" in str(line.get("why"))
        for rank, line in enumerate(site.attempts(name)[:3])
    )
    if named != len(faults):
        wrong.append(f"the rank was named in {named} of {len(faults)}")
    said = f"{named} of {len(faults)} flips found in their step, rank named, bits equal at the end"
    return Result(len(faults), said, tuple(wrong))
