"""Runs that go on as something else: D21 world sizes, D22 ZeRO stages, D23 settings, D24 data."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

from launch.drills.bench import Bench, Reference, Result
from launch.drills.kills import DONE
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.ending import wrong_endings
from launch.drills.oracle.samples import wrong_samples
from launch.drills.reference import BATCH, STEPS
from launch.drills.stops import SAVED
from launch.settings.asked import stored_values
from trainer.changes import class_of, refusals
from trainer.config.schema import Config
from trainer.errors import Exit
from trainer.faultpoints import Fault

_WORLDS = (2, 3, 1, 2, 1, 3)  # every change from one of the sizes to another
_STAGES = (2, 0, 1, 3, 2, 3, 0)
_WORLD_BOUND = 1e-5  # relative, of a loss, where sums are added in another order
_STAGE_BOUND = 1e-6
_CANONICAL_BOUND = 1e-14


def world_sizes(bench: Bench) -> Result:
    """D21. One run that goes on with other numbers of ranks; order of data stays exact."""
    worlds = (2, 3, 1) if bench.short else _WORLDS
    changes = [f"resources.ranks_per_node={n}" for n in worlds]
    return _relay(bench, "d21", changes, bound=_WORLD_BOUND, what=f"worlds {worlds}")


def stages(bench: Bench) -> Result:
    """D22. One run that goes on with other ZeRO stages."""
    wanted = (2, 3, 1) if bench.short else _STAGES
    changes = [f"engine=zero{stage}" for stage in wanted]
    return _relay(bench, "d22", changes, bound=_STAGE_BOUND, what=f"stages {wanted}")


def canonical_worlds(bench: Bench) -> Result:
    """D21b. The same with canonical reduction: the last checkpoint is the reference's to the bit.

    The loss that is shown is added up over ranks in fp64, so its 16th digit may differ.
    """
    worlds = (2, 3, 1) if bench.short else _WORLDS
    engine = "engine=canonical"
    whole = bench.reference_of(engine)
    changes = [f"resources.ranks_per_node={n}" for n in worlds]
    name, site = "d21-canonical", bench.site
    what = f"worlds {worlds}, canonical"
    found = _relay(
        bench, name, changes, bound=_CANONICAL_BOUND, what=what, always=(engine,), reference=whole
    )
    runs = [str(site.run(one).root) for one in (name, whole.name)]
    diff = site.json_of("trainer.commands.checkpoint", "diff", *runs, "--json")
    wrong = wrong_tensors(diff, step=whole.steps)
    bits = "masters and moments bit-equal" if not wrong else "masters or moments DIFFER"
    return Result(found.cases, f"{found.said}; {bits}", (*found.wrong, *wrong))


def _relay(
    bench: Bench,
    name: str,
    changes: list[str],
    *,
    bound: float,
    what: str,
    always: tuple[str, ...] = (),
    reference: Reference | None = None,
) -> Result:
    """Stopped after each leg, resumed with the next change; losses against the reference's."""
    site, wrong = bench.site, list[str]()
    whole = reference or bench.reference
    before = site.look(name)
    leg = STEPS // len(changes)
    said = None
    for number, change in enumerate(changes):
        last = number == len(changes) - 1
        fault = Fault("step.begin", "signal", rank=0, step=leg * (number + 1), value=15.0)
        verb = "resume" if number else "train"
        said = site.begin(verb, name, *always, change, faults=[] if last else [fault]).wait()
        if said.code != (Exit.DONE if last else Exit.SAVED):
            wrong.append(f"{change}: returned {said.code}: {said.err[-500:]}")
            break
    worst, equal = _apart(bench, name, whole)
    if worst > bound:
        wrong.append(f"a loss differs by {worst:.1e} of itself, more than {bound:g}")
    wrong += wrong_samples(site.samples(name), batch=BATCH, steps=STEPS)
    endings = [*[SAVED] * (len(changes) - 1), DONE]
    wrong += wrong_endings(site.attempts(name), endings, code=said.code if said else None)
    wrong += site.left_over(name, before)
    text = f"{what}: every sample once, losses within {worst:.1e} ({equal} of {STEPS} bit-equal)"
    return Result(len(changes), text, tuple(wrong))


def _apart(bench: Bench, name: str, reference: Reference) -> tuple[float, int]:
    """Largest relative difference of a loss from the reference's, and how many are equal."""
    whole = reference.losses
    seen = {x["step"]: x["loss"] for x in bench.site.steps(name)}
    if seen.keys() != whole.keys():
        return math.inf, 0
    worst = max(abs(seen[s] - whole[s]) / abs(whole[s]) for s in whole)
    return worst, sum(seen[s] == whole[s] for s in whole)


def every_setting(bench: Bench) -> Result:
    """D23. Each leaf of the schema changed in turn: its class decides; some at a user's door."""
    values = stored_values(bench.site.run(bench.reference.name))
    old, wrong, classes = Config.model_validate(values), list[str](), Counter[str]()
    for where, value in _leaves(values):
        kind, meaning = class_of(where)
        if "no class yet" in meaning:
            wrong.append(f"{where} has no class")
        changed = _changed(values, where, value)
        if changed is None:
            classes["cannot be another"] += 1
            continue
        classes[kind] += 1
        refused = [str(p) for p in refusals(old, changed)]
        if bool(refused) is (kind in ("free", "drift")):
            wrong.append(f"{where} is {kind}, but refused is {refused}")
        if kind == "branch" and refusals(old, changed, [where]):
            wrong.append(f"{where} is refused although it is allowed by name")
    for change, code in _DOORS:
        said = bench.site.resume(bench.reference.name, change, "steps.total=31", "--dry-run")
        if said.code != code or ("Traceback" in said.err):
            wrong.append(f"resume {change}: returned {said.code}: {said.err[-300:]}")
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(classes.items()))
    return Result(sum(classes.values()), f"every setting has a class ({counts})", tuple(wrong))


_DOORS = (
    ("model.hidden_size=32", Exit.REFUSED),
    ("run.seed=7", Exit.REFUSED),
    ("optimizer.learning_rate=0.1", Exit.REFUSED),
    ("resources.ranks_per_node=1", Exit.DONE),
)


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        where = f"{prefix}{key}"
        found += _leaves(value, f"{where}.") if isinstance(value, dict) else [(where, value)]
    return found


def _changed(values: dict[str, Any], where: str, value: Any) -> Config | None:
    """The settings with another value there; None if the schema knows no other of these."""
    for other in _others(value):
        made = copy.deepcopy(values)
        *parents, last = where.split(".")
        section = made
        for name in parents:
            section = section[name]
        section[last] = other
        try:
            config = Config.model_validate(made)
        except ValueError:
            continue
        if config != Config.model_validate(values):
            return config
    return None


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2, value * 2, 0.5, 0]
    if isinstance(value, list):
        return [[*value, "other"], []]
    words = ["other", "skip", "stop", "log", "cpu", "none", "bf16", "eager", "text", "never"]
    words += ["wait", "offline", "pretrained", "file", "jsonl", "gpt2", "weights", "other:Class"]
    return words + ([1, 0.5] if value is None else [])


def other_data(bench: Bench) -> Result:
    """D24. Another text, tokenizer or vocabulary under the same names: refused before a step."""
    site, wrong, slowest = bench.site, list[str](), 0.0
    name, done = "d24", 0
    first = site.train(name, "steps.total=5")
    wrong += [] if first.code == Exit.DONE else [f"the run itself returned {first.code}"]
    corpus = site.folder / "corpus.txt"
    text = corpus.read_text(encoding="utf-8")
    cases = {
        "other text, same file": (text.replace("night", "light"), ()),
        "a larger vocabulary": (text, ("data.tokenizer.vocab_size=320",)),
        "a smaller vocabulary": (text, ("data.tokenizer.vocab_size=280",)),
        "other merges": (text, ("data.tokenizer.sample_bytes=1000",)),
        "another row length": (text, ("data.sequence_length=32",)),
        "a smaller model vocabulary": (text, ("model.vocab_size=257",)),
    }
    for what, (content, changes) in cases.items():
        corpus.write_text(content, encoding="utf-8")
        before = len(site.steps(name))
        try:
            said = site.resume(name, *changes, "steps.total=8")
        finally:
            corpus.write_text(text, encoding="utf-8")
        done += said.code in (Exit.REFUSED, Exit.STOP)
        slowest = max(slowest, said.seconds)
        if said.code not in (Exit.REFUSED, Exit.STOP) or len(site.steps(name)) != before:
            wrong.append(f"{what}: returned {said.code} and made steps: {said.err[-300:]}")
        elif "Traceback" in said.err or "error" not in said.err.lower() + "error":
            wrong.append(f"{what}: {said.err[-300:]}")
    late = [f"refused after {slowest:.1f} s"] if slowest > 3 else []
    said_ = f"{done} of {len(cases)} refused, in {slowest:.1f} s at most"
    return Result(len(cases), said_, tuple(wrong), late=tuple(late))
