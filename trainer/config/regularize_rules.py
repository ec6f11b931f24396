"""What regularisation needs of the other sections: each yields Problems."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.config.sections.tasks import ClassifyTask
from trainer.config.sections.training import DeepSpeedEngine
from trainer.errors import Problem


def regularize_problems(config: Config) -> Iterator[Problem]:
    yield from _early_stopping_problems(config)
    yield from _ema_problems(config)
    yield from _pass_problems(config)
    yield from _mixout_problems(config)


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


def _mixout_problems(config: Config) -> Iterator[Problem]:
    if not config.regularize.mixout:
        return
    where, off, model = "regularize.mixout", "regularize.mixout=0", config.model
    if model.adapter.kind != "none":
        what = f"model/adapter={model.adapter.kind} leaves weights as the model started with them"
        yield Problem(where, what, f"{off}, or model/adapter=none")
    if model.compile:
        yield Problem(where, "what it draws cannot be compiled", "model.compile=false")
    if isinstance(config.engine, DeepSpeedEngine) and config.engine.offload_parameters != "none":
        what = "it keeps a second copy of the weights, which are to lie elsewhere"
        yield Problem(where, what, f"{off}, or engine.offload_parameters=none")
    if config.task.kind == "preference":
        what = "a preference is measured against the model as it is, not as it is mixed"
        yield Problem(where, what, off)


def _pass_problems(config: Config) -> Iterator[Problem]:
    """Of what changes the passes through the model."""
    section, task = config.regularize, config.task
    adversarial = section.adversarial.kind != "none"
    one_class = task.kind == "relations" or getattr(task, "answers", "") == "single"
    if section.r_drop and not (one_class or task.kind == "tag"):
        what = f"it compares classes of examples or words, and {task.kind} has none to compare"
        if isinstance(task, ClassifyTask):
            what = f"it compares one class an example, and task.answers is {task.answers}"
        yield Problem("regularize.r_drop", what, "regularize.r_drop=0")
    if adversarial and (section.r_drop or section.neftune):
        other = "r_drop" if section.r_drop else "neftune"
        what = f"an adversary moves what regularize.{other} changes at random: take one of them"
        yield Problem("regularize.adversarial.kind", what, f"regularize.{other}=0")
    if task.kind == "preference" and (adversarial or section.neftune):
        where = "regularize.adversarial.kind" if adversarial else "regularize.neftune"
        off = f"{where}=none" if adversarial else f"{where}=0"
        what = "a preference is measured against the model as it is, not at moved embeddings"
        yield Problem(where, what, off)
