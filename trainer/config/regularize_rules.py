"""What regularisation needs of the other sections: each yields Problems."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.errors import Problem


def regularize_problems(config: Config) -> Iterator[Problem]:
    yield from _early_stopping_problems(config)


def _early_stopping_problems(config: Config) -> Iterator[Problem]:
    if not config.regularize.early_stopping.patience:
        return
    where = "regularize.early_stopping.patience"
    if not config.evals.held_out_rows:
        what = "nothing is evaluated, so that no evaluation could tell when to stop"
        yield Problem(where, what, "evals.held_out_rows=64")
    elif not config.steps.eval_every:
        what = "evaluations come at the end alone (steps.eval_every=0), too late to stop early"
        tenth = max(config.steps.total // 10, 1)
        yield Problem(where, what, f"steps.eval_every={tenth}")
