"""What a changed setting does to a run that goes on, in numbers: both plans held side by side.

Pure. A fact that follows from several changed settings is told with the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from trainer.changes import Change, changes
from trainer.config.sections.training import AdamW, Muon
from trainer.plan import RunPlan
from trainer.records.sizes import size_text
from trainer.schedules import learning_rate


@dataclass(frozen=True)
class _Both:
    """The stored plan, the new one, and the steps that are done."""

    old: RunPlan
    new: RunPlan
    step: int

    def pair(self, of: Callable[[RunPlan], str]) -> str:
        """ "a -> b"; empty if it is the same."""
        before, after = of(self.old), of(self.new)
        return f"{before} -> {after}" if before != after else ""


def counted(old: RunPlan, new: RunPlan, *, step: int) -> list[Change]:
    """`changes` between the plans' settings, each with what follows. `step`: the last one done."""
    both, said = _Both(old, new, step), set[str]()
    found = []
    for change in changes(old.config, new.config):
        facts = [fact(both) for fact in _facts_of(change.where)]
        fresh = [fact for fact in facts if fact and fact not in said]
        said.update(fresh)
        found.append(replace(change, numbers="; ".join(fresh)))
    return found


def _facts_of(where: str) -> tuple[Callable[[_Both], str], ...]:
    fitting = [name for name in _FACTS if where == name or where.startswith(f"{name}.")]
    return _FACTS[max(fitting, key=len)] if fitting else ()


def _steps_left(both: _Both) -> str:
    return _labelled(
        "steps left", both.pair(lambda p: f"{max(p.config.steps.total - both.step, 0):,}")
    )


def _tokens_a_step(both: _Both) -> str:
    return _labelled("tokens a step", both.pair(lambda p: f"{p.tokens_per_step:,}"))


def _tokens_left(both: _Both) -> str:
    """Also as passes over the prepared tokens, and how many times as many they are."""
    before, after = (_tokens_to_come(p, both.step) for p in (both.old, both.new))
    if before == after:
        return ""
    times = f", {after / before:.2f} times as many" if before else ""
    epochs = both.pair(lambda p: _epochs(p, both.step))
    return f"tokens left {before:,} -> {after:,}{times}" + (f", {epochs} epochs" if epochs else "")


def _tokens_to_come(plan: RunPlan, step: int) -> int:
    return max(plan.config.steps.total - step, 0) * plan.tokens_per_step


def _epochs(plan: RunPlan, step: int) -> str:
    known = sum(store.train_tokens for store in plan.stores)
    return f"{_tokens_to_come(plan, step) / known:.2f}" if known else ""


def _rate(both: _Both) -> str:
    """Of the next step, and of the last one where that differs too."""
    following = _labelled(
        f"learning rate at step {both.step + 1:,}",
        both.pair(lambda p: f"{_rate_of(p, both.step + 1):.3g}"),
    )
    last = _labelled(
        "at the last one", both.pair(lambda p: f"{_rate_of(p, p.config.steps.total):.3g}")
    )
    if last and not following:
        last = f"learning rate {last}"
    return ", ".join(text for text in (following, last) if text)


def _rate_of(plan: RunPlan, step: int) -> float:
    config = plan.config
    rates = learning_rate(
        config.schedule,
        config.optimizer.learning_rate,
        total_steps=config.steps.total,
        tokens_per_step=plan.tokens_per_step,
    )
    return rates(step)


def _rows(both: _Both) -> str:
    """How a step is cut up: world, rows a rank, accumulation, padding."""
    parts = (
        _labelled("world", both.pair(lambda p: f"{p.world_size}")),
        _labelled("rows a rank", both.pair(lambda p: f"{_rows_a_rank(p):g}")),
        _labelled("accumulation", both.pair(lambda p: f"{p.gradient_accumulation_steps}")),
        _labelled("rows of weight zero", both.pair(lambda p: f"{p.padding_rows}")),
    )
    return ", ".join(part for part in parts if part)


def _rows_a_rank(plan: RunPlan) -> float:
    return round(plan.config.batch.global_batch_size / plan.world_size, 2)


def _threads(both: _Both) -> str:
    return _labelled("threads of a rank", both.pair(lambda p: f"{p.threads_per_rank}"))


def _memory(both: _Both) -> str:
    device = both.pair(lambda p: size_text(p.memory_per_rank.total))
    host = both.pair(lambda p: size_text(p.memory_per_rank.host))
    parts = (_labelled("memory of a rank", device), _labelled("offloaded", host))
    return ", ".join(part for part in parts if part)


def _parameters(both: _Both) -> str:
    return _labelled("parameters", both.pair(lambda p: f"{p.num_parameters:,}"))


def _checkpoint(both: _Both) -> str:
    return _labelled("a checkpoint", both.pair(lambda p: size_text(p.checkpoint_bytes)))


def _kept(both: _Both) -> str:
    def disk(plan: RunPlan) -> str:
        return size_text(plan.config.checkpoint.keep_last * plan.checkpoint_bytes)

    return _labelled("disk for the newest checkpoints", both.pair(disk))


def _at_risk(both: _Both) -> str:
    def lost(plan: RunPlan) -> str:
        every = plan.config.steps.save_every
        return "as many as pay" if every == "auto" else f"{every or plan.config.steps.total:,}"

    return _labelled("steps that a failure costs at most", both.pair(lost))


def _evaluations(both: _Both) -> str:
    def left(plan: RunPlan) -> str:
        every, total = plan.config.steps.eval_every, plan.config.steps.total
        last = 1 if not every or total % every else 0  # there is always one at the end
        return f"{(total // every - both.step // every if every else 0) + last}"

    return _labelled("evaluations left", both.pair(left))


def _mixture(both: _Both) -> str:
    def shares(plan: RunPlan) -> str:
        weights = {name: source.weight for name, source in plan.config.data.sources.items()}
        total = sum(weights.values()) or 1.0
        return ", ".join(f"{name} {100 * w / total:.1f} %" for name, w in weights.items())

    return _labelled("rows", both.pair(shares))


def _decay(both: _Both) -> str:
    def shrink(plan: RunPlan) -> str:
        rate = _rate_of(plan, both.step + 1)
        return f"{rate * plan.config.optimizer.weight_decay:.2g}"

    return _labelled("weights shrink in the next step by", both.pair(shrink))


def _windows(both: _Both) -> str:
    """Steps over which the moments average: 1 / (1 - beta)."""

    def steps(plan: RunPlan) -> str:
        optimizer = plan.config.optimizer
        if not isinstance(optimizer, AdamW | Muon):
            return f"{1 / (1 - optimizer.momentum):.3g}"
        return f"{1 / (1 - optimizer.beta1):.3g} and {1 / (1 - optimizer.beta2):.3g}"

    return _labelled("moments average over steps", both.pair(steps))


def _labelled(label: str, pair: str) -> str:
    return f"{label} {pair}" if pair else ""


_FACTS: dict[str, tuple[Callable[[_Both], str], ...]] = {
    "steps.total": (_steps_left, _tokens_left, _rate),
    "steps.save_every": (_at_risk,),
    "steps.eval_every": (_evaluations,),
    "batch.global_batch_size": (_tokens_a_step, _tokens_left, _rate, _rows),
    "batch.micro_batch_size": (_rows, _memory),
    "resources": (_rows, _threads, _memory),
    "model": (_parameters, _memory, _checkpoint),
    "data.sequence_length": (_tokens_a_step, _tokens_left, _memory),
    "data.sources": (_mixture,),
    "data.tokenizer": (_parameters,),
    "optimizer.learning_rate": (_rate,),
    "optimizer.kind": (_checkpoint, _memory),
    "optimizer.weight_decay": (_decay,),
    "optimizer.beta1": (_windows,),
    "optimizer.beta2": (_windows,),
    "optimizer.momentum": (_windows,),
    "schedule": (_rate,),
    "engine": (_memory,),
    "precision": (_memory, _checkpoint),
    "checkpoint.keep_last": (_kept,),
}
