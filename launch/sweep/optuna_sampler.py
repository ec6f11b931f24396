"""The one door to Optuna: a study in memory, asked and told. The sweep's own file is the truth; a
study is made again from it by asking and telling in the same order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from launch.sweep.journal import Trial
from launch.sweep.samplers import Told
from launch.sweep.space import Choice, Dimension, Point, Space
from trainer.config.sections.sweep import SweepSection
from trainer.errors import Refused

_FEWEST = 4  # different values, below which nothing can be told
_PRIME = 1_000_003  # seeds of neighbouring sweeps have no trial's seed in common


class OptunaSampler:
    """Each trial has a sampler of its own, seeded by its number: no random state to keep."""

    def __init__(self, section: SweepSection, space: Space) -> None:
        """Raises: Refused if Optuna, or for cmaes its library, is not installed."""
        try:
            import optuna

            if section.sampler == "cmaes":
                from importlib.metadata import version

                version("cmaes")
        except ImportError as e:  # PackageNotFoundError is one
            what = f"sweep.sampler={section.sampler} needs Optuna"
            raise Refused(f"{what}, which is not installed: pip install 'longhaul[sweeps]'") from e
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna: Any = optuna
        self._section, self._space = section, space
        directions: list[Any] = [
            "minimize" if goal == "min" else "maximize" for goal in section.goals
        ]
        self._study: Any = optuna.create_study(directions=directions)
        self._open: dict[int, Any] = {}

    def ask(self, number: int) -> Point:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is experimental there is pinned here
            self._study.sampler = self._sampler(number)
            trial = self._study.ask()
            point = self._space.draw(lambda one: _suggested(trial, one))
        self._open[number] = trial
        return point

    def tell(self, told: Told) -> None:
        trial = self._open.pop(told.number, None)
        if trial is None:  # told before: it was taken back, and goes on
            return
        states = self._optuna.trial.TrialState
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if told.values:
                self._study.tell(trial, list(told.values))
            elif told.at is not None and len(self._section.metrics) == 1:
                trial.report(told.at[1], told.at[0])
                self._study.tell(trial, state=states.PRUNED)
            elif told.is_bad and len(self._section.metrics) == 1:
                self._study.tell(trial, state=states.PRUNED)  # behind all that have a value
            else:
                self._study.tell(trial, state=states.FAIL)

    def _sampler(self, number: int) -> Any:
        samplers, seed = self._optuna.samplers, self._section.seed * _PRIME + number
        seed %= 2**32
        if self._section.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self._section.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        return samplers.TPESampler(seed=seed)


def importances(section: SweepSection, space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """How much each dimension that all whole trials have matters to the first metric, together 1.

    By Optuna's PED-ANOVA; empty without Optuna, or where too few trials say too little.
    """
    whole = [one for one in trials if one.state == "finished"]
    if len({one.values[0] for one in whole}) < _FEWEST:
        return {}
    try:
        import optuna
        from optuna.importance import PedAnovaImportanceEvaluator
    except ImportError:
        return {}
    goal = section.goals[0]
    study: Any = optuna.create_study(direction="minimize" if goal == "min" else "maximize")
    kinds = {one.name: _distribution(optuna, one) for one in space.dimensions}
    for one in whole:
        there = {name: kinds[name] for name in one.point}
        made = optuna.trial.create_trial(
            params=dict(one.point), distributions=there, value=one.values[0]
        )
        study.add_trial(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator()
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    return {name: weight for name, weight in found.items() if math.isfinite(weight)}


def _distribution(optuna: Any, one: Dimension) -> Any:
    kinds = optuna.distributions
    if isinstance(one, Choice):
        return kinds.CategoricalDistribution(list(range(len(one.alternatives))))
    if one.is_whole:
        return kinds.IntDistribution(int(one.low), int(one.high), log=one.is_log)
    return kinds.FloatDistribution(one.low, one.high, log=one.is_log)


def _suggested(trial: Any, one: Dimension) -> int | float:
    if isinstance(one, Choice):
        return int(trial.suggest_categorical(one.name, list(range(len(one.alternatives)))))
    if one.is_whole:
        return int(trial.suggest_int(one.name, int(one.low), int(one.high), log=one.is_log))
    return float(trial.suggest_float(one.name, one.low, one.high, log=one.is_log))
