"""What differs between a stored run and what is asked now, and what that means for resuming.

    frozen  the run would be another one: refused, always
    branch  training goes on differently: refused unless `resume.allow` names the setting
    drift   accepted; numbers may differ in their last bits or the schedule is stretched
    free    accepted: where and how fast, not what
A setting without a class is frozen, and a test asks for a class for every setting. What a change
does in numbers: trainer/consequences.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.schema import Config
from trainer.errors import Problem

Class = Literal["frozen", "branch", "drift", "free"]

# The longest prefix of a setting decides. `*` stands for one name.
_CLASSES: dict[str, tuple[Class, str]] = {
    "run.name": ("free", "a run may be renamed"),
    "run.root": ("free", "a run may be moved"),
    "run.seed": ("frozen", "data order, dropout and initial weights follow from it"),
    "run.trust": ("free", "says only what may be named"),
    "resources": ("free", "any world size continues a run"),
    "steps.total": ("drift", "the learning rate follows the new total from here on"),
    "steps": ("free", "when things happen beside training"),
    "batch.global_batch_size": ("branch", "another batch is another training run from here on"),
    "batch.micro_batch_size": ("free", "how a step is cut up changes nothing"),
    "model": ("frozen", "the weights have this shape"),
    "model.attention": ("drift", "kernels round differently"),
    "model.activation_checkpointing": ("free", "the same numbers, computed twice"),
    "model.compile": ("drift", "kernels round differently"),
    "model.loss_chunk_tokens": ("drift", "sums are taken in another order"),
    "model.dropout": ("branch", "another regularisation from here on"),
    "model.path": ("frozen", "the weights come from there"),
    "task": ("frozen", "what is minimised"),
    "task.label_smoothing": ("branch", "another regularisation from here on"),
    "task.z_loss": ("branch", "another regularisation from here on"),
    "data": ("frozen", "the tokens already seen would be others"),
    "data.sources.*.weight": ("branch", "another mixture from here on"),
    "data.store_root": ("free", "a store is known by its content"),
    "data.shard_tokens": ("free", "how tokens lie in files changes nothing"),
    "data.num_workers": ("free", "how fast the store is made"),
    "data.prefetch_steps": ("free", "how early rows are read"),
    "optimizer": ("branch", "updates are others from here on"),
    "optimizer.kind": ("frozen", "its moments mean something else"),
    "regularize": ("branch", "another regularisation from here on"),
    "regularize.early_stopping": ("free", "where the run ends, and which step is its best"),
    "regularize.ema": ("frozen", "the average is over all steps, in every checkpoint"),
    "regularize.ema.evaluate": ("free", "what is measured"),
    "schedule": ("branch", "the learning rate is another from here on"),
    "engine": ("free", "any engine loads any checkpoint"),
    "precision": ("drift", "rounding differs; the fp32 master weights stay"),
    "guard": ("free", "what is done when numbers cannot be right"),
    "checkpoint": ("free", "what is kept, and how it is written"),
    "evals": ("free", "what is measured"),
    "observers": ("free", "what is shown"),
    "resume": ("free", "how to resume"),
    "launch": ("free", "where ranks are started"),
    "watch": ("free", "when a rank counts as hung"),
    "restart": ("free", "what follows a failure"),
    "drills": ("free", "whether it may be broken on purpose"),
}
# Free, and yet sums are taken in another order from here on: the last bits differ.
_RANKS = ("resources.nodes", "resources.ranks_per_node")
_REORDERS = (
    *_RANKS,
    "resources.device",
    "resources.threads_per_rank",
    "batch.micro_batch_size",
    "engine",
)
_FIXED = "canonical"  # the engine whose sums do not depend on the number of ranks
VERSIONS = "versions"  # changes of installed packages stand under this name


@dataclass(frozen=True)
class Change:
    """One setting that differs. A setting that one side lacks has the value None there.

    `numbers`: what follows from it, if anybody has counted (trainer/consequences.py). `fixed`: the
    engine adds up in one order on any number of ranks.
    """

    where: str
    old: Any
    new: Any
    kind: Class
    meaning: str
    numbers: str = ""
    fixed: bool = False

    @property
    def keeps_bits(self) -> bool:
        """Whether the numbers of every later step are those that they would have been."""
        if self.fixed and self.where in _RANKS:
            return True
        return self.kind == "free" and not _is_named(self.where, _REORDERS)

    def __str__(self) -> str:
        return f"{self.where}: {self.old!r} -> {self.new!r} ({self.numbers or self.meaning})"


def changes(old: Config, new: Config) -> list[Change]:
    """What differs, in the order of the schema; `old` is the stored run."""
    before, after = (dict(_settings(c.model_dump(mode="json"))) for c in (old, new))
    fixed = old.engine.kind == new.engine.kind == _FIXED
    found = []
    for where in [*before, *(k for k in after if k not in before)]:
        was, now = before.get(where), after.get(where)
        if was != now:
            kind, meaning = class_of(where)
            if where == "engine.kind" and _FIXED in (was, now):
                kind, meaning = "drift", "sums are taken in another order"
            found.append(Change(where, was, now, kind, meaning, fixed=fixed))
    return found


def version_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[Change]:
    """Packages that are installed in another version than before; unknown ones are left out."""
    meaning = "its kernels may round differently"
    return [
        Change(f"{VERSIONS}.{name}", old[name], new[name], "drift", meaning)
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]


def refusals(old: Config, new: Config, allow: Sequence[str] = ()) -> list[Problem]:
    """What forbids to continue `old` as `new`; empty: it may. `allow` as in resume.allow."""
    return refused(changes(old, new), allow)


def refused(differences: Sequence[Change], allow: Sequence[str] = ()) -> list[Problem]:
    """Those of the differences that forbid to go on, each with what would allow it."""
    found = []
    for change in differences:
        was = f"the run has {change.old!r}, now it is {change.new!r}: {change.meaning}"
        was += f" ({change.numbers})" if change.numbers else ""
        if change.kind == "frozen":
            fix = f"{change.where}={_as_override(change.old)}, or another run.name"
            found.append(Problem(change.where, was, fix))
        elif change.kind == "branch" and not _is_named(change.where, allow):
            names = ",".join([*allow, change.where])
            found.append(Problem(change.where, was, f"resume.allow=[{names}]"))
    return found


def class_of(where: str) -> tuple[Class, str]:
    """Class and meaning of a dotted setting."""
    parts = where.split(".")
    for length in range(len(parts), 0, -1):
        for pattern, known in _CLASSES.items():
            if _fits(pattern.split("."), parts[:length]):
                return known
    return "frozen", "this setting has no class yet"


def _fits(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(
        p in ("*", part) for p, part in zip(pattern, parts, strict=True)
    )


def _is_named(where: str, allow: Sequence[str]) -> bool:
    return any(where == name or where.startswith(f"{name}.") for name in allow)


def _settings(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_override(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    return str(value)
