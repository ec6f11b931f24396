"""Numbers that cannot be right: D26 a gradient that is not finite, on one rank, in one place."""

from __future__ import annotations

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.ending import wrong_endings
from launch.drills.oracle.samples import wrong_samples
from launch.drills.reference import BATCH

_STEPS = 12
_BAD = 7  # the step that is left out
_SAMPLE = (_BAD - 1) * BATCH + 4  # one that the second rank reads
_CASES = ("nan", "element", "inf", "embedding", "loss")


def not_finite(bench: Bench) -> Result:
    """D26. Left out on all ranks alike: nothing of the state moves, the next step is normal."""
    cases = _CASES[:2] if bench.short else _CASES
    site, wrong = bench.site, list[str]()
    finals: dict[str, dict[int, float | None]] = {}
    for how in cases:
        name = f"d26-{how}"
        before = site.look(name)
        last = site.train(
            name,
            f"steps.total={_STEPS}",
            "steps.save_every=1",
            "checkpoint.keep_last=20",
            f"+task.settings.spoil={{sample:{_SAMPLE},how:{how}}}",
        )
        lines = site.steps(name)
        left_out = [x["step"] for x in lines if not x["applied"]]
        if left_out != [_BAD]:
            wrong.append(f"{name}: steps {left_out} were left out, not [{_BAD}]")
        root = str(site.run(name).root)
        diff = site.json_of(
            "trainer.commands.checkpoint",
            *("diff", root, str(_BAD - 1), str(_BAD), "--json"),
        )
        moved = wrong_tensors({**diff, "steps": [_BAD, _BAD]}, step=_BAD)
        wrong += [f"{name}: the step that was left out moved: {text}" for text in moved]
        wrong += wrong_samples(site.samples(name), batch=BATCH, steps=_STEPS)
        wrong += wrong_endings(site.attempts(name), [DONE], code=last.code)
        wrong += site.left_over(name, before)
        finals[how] = {x["step"]: x["loss"] for x in lines if x["step"] != _BAD}
    first = finals[cases[0]]
    wrong += [f"{how}: other losses than {cases[0]}" for how, f in finals.items() if f != first]
    said = f"{len(cases)} kinds on one rank: 1 step left out each, state untouched, same bits after"
    return Result(len(cases), said, tuple(wrong))
