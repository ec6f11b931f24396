"""What regularisation needs of the other sections: each yields Problems."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import Problem


def regularize_problems(config: Config) -> Iterator[Problem]:
    yield from _early_stopping_problems(config)
    yield from _ema_problems(config)


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


def _ema_problems(config: Config) -> Iterator[Problem]:
    engine = config.engine
    if not config.regularize.ema.decay or not isinstance(engine, DeepSpeedEngine):
        return
    if engine.offload_optimizer == "nvme":
        what = "an average of weights that lie on a disk would be read and written at every step"
        yield Problem("regularize.ema.decay", what, "engine.offload_optimizer=cpu")
