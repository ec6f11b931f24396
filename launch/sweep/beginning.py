"""From a command line to a sweep that may begin: everything that can be refused is refused here,
before anything is written or queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from launch.backends.table import backend_of
from launch.nodes_of import device_of
from launch.stand import plan_of, stand
from launch.start import look_at_the_place
from launch.sweep.budget import Budget
from launch.sweep.folder import SweepFiles, find_sweep, refuse_another
from launch.sweep.grammar import as_settings, space_of, taken_apart
from launch.sweep.journal import Trial
from launch.sweep.samplers import MOST
from launch.sweep.space import Space
from trainer.changes import class_of
from trainer.config.rules import world_size
from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch
from trainer.config.sections.slurm import SlurmLaunch
from trainer.config.sections.sweep import SweepSection
from trainer.config.sweep_settings import validate_sweep
from trainer.errors import ConfigError, Problem, Refused
from trainer.records.json_file import read_json

# May differ from one command to the next; all else is what the sweep is.
LIMITS = ("trials", "concurrency", "retries", "trial_hours", "budget", "poll_s")
# Of a step; what evaluations report depends on the task.
STEP_METRICS = (
    *("loss", "learning_rate", "grad_norm", "terms", "tokens", "row_tokens", "tokens_seen"),
    *("step_s", "data_s", "forward_s", "backward_s", "update_s", "tokens_per_second", "mfu"),
    *("memory_bytes", "skipped"),
)
_SETTINGS_OF_A_RUN = ("run", "resume", "launch", "restart", "watch", "resources", "observers")


@dataclass(frozen=True)
class Beginning:
    """A sweep that may begin, or go on. `corner`: the settings of one trial, the largest."""

    files: SweepFiles
    section: SweepSection
    space: Space
    fixed: tuple[str, ...]
    command: dict[str, list[str]]  # as it was typed
    total: int
    corner: Config
    budget: Budget
    base: dict[str, Any]

    @property
    def last_step(self) -> int:
        """Of the longest trial; 0: known once its data is prepared."""
        return 0 if self.corner.steps.epochs is not None else self.corner.steps.total

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other."""
        limits = {"trials"} if self.section.pruner.kind == "pbt" else set()  # a population's size
        section = self.section.model_dump(mode="json", exclude=set(LIMITS) - limits)
        settings = {k: v for k, v in self.base.items() if k not in _SETTINGS_OF_A_RUN}
        space = {"dimensions": [repr(one) for one in self.space.dimensions]}
        return {"sweep": section, "space": space, "settings": settings}

    def settings_of(self, trial: Trial) -> Config:
        """Raises: ConfigError if the point cannot be."""
        return _settings(
            self.files, trial.number, (*self.fixed, *trial.overrides), self.command["config_dirs"]
        )


def begin(overrides: Sequence[str], *, config_dirs: Sequence[str] = ()) -> Beginning:
    """Raises: ConfigError, Refused with what is wrong with the sweep or with any of its runs."""
    from launch.compose import compose

    asked = taken_apart(overrides)
    dirs = tuple(config_dirs)
    values = compose(asked.sweep, config_dirs=dirs, config_name="sweep").values
    section = validate_sweep(values["sweep"])
    space = space_of(section, asked.searched)
    total = _total(section, space)
    base = compose(asked.fixed, config_dirs=dirs).values
    files = SweepFiles(Path(str(base["run"]["root"])) / section.name)
    corners = _corners(files, space, asked.fixed, dirs)
    corner = max(corners, key=world_size)
    _refuse_places(section, corner)
    _refuse_metrics(section, corners)
    if section.pruner.kind == "pbt":
        _refuse_population(section, space, total)
    if not section.poll_s:
        poll_s = 1.0 if corner.launch.kind == "local" else 15.0
        section = section.model_copy(update={"poll_s": poll_s})
    budget = Budget.of(section, ranks=world_size(corner), grace_s=corner.launch.grace_s)
    command = {"overrides": list(overrides), "config_dirs": list(dirs)}
    begun = Beginning(files, section, space, asked.fixed, command, total, corner, budget, base)
    refuse_another(files, begun.identity)
    return begun


def begin_again(name: str, overrides: Sequence[str], *, root: str) -> Beginning:
    """A sweep that exists, by the command that was last given for it and what is given now.

    Raises: as `begin`; Refused if there is none.
    """
    files = find_sweep(name, root=Path(root))
    if files is None:
        raise Refused(f"there is no sweep {name!r} under {root}/; it begins with its settings")
    command = read_json(files.command)
    return begin([*command["overrides"], *overrides], config_dirs=command["config_dirs"])


def searched(files: SweepFiles) -> tuple[SweepSection, Space]:
    """What a sweep that exists searches, by the command that was last given for it."""
    from launch.compose import compose

    command = read_json(files.command)
    asked = taken_apart(command["overrides"])
    dirs = tuple(command["config_dirs"])
    values = compose(asked.sweep, config_dirs=dirs, config_name="sweep").values
    section = validate_sweep(values["sweep"])
    return section, space_of(section, asked.searched)


def _corners(
    files: SweepFiles, space: Space, fixed: Sequence[str], dirs: Sequence[str]
) -> list[Config]:
    """Checked in full. Raises: ConfigError with the problems of all, each once."""
    found: list[Config] = []
    problems: dict[tuple[str, str], tuple[Problem, list[str]]] = {}
    corners = space.corners()
    for point in corners:
        overrides = space.overrides(point)
        try:
            found.append(_settings(files, 0, (*fixed, *overrides), dirs))
        except ConfigError as e:
            for problem in e.problems:
                _, who = problems.setdefault((problem.where, problem.what), (problem, []))
                who.append(" ".join(overrides))
    if problems:
        raise ConfigError(
            [p if len(w) == len(corners) else _of_one(p, w[0]) for p, w in problems.values()]
        )
    return found


def _of_one(problem: Problem, who: str) -> Problem:
    return Problem(problem.where, f"{problem.what} (with {who})", problem.fix)


def _settings(
    files: SweepFiles, number: int, overrides: Sequence[str], dirs: Sequence[str]
) -> Config:
    from launch.compose import compose
    from trainer.planning import judged

    values = compose(overrides, config_dirs=dirs).values
    values["run"] |= {"name": files.run_name(number), "root": str(files.runs)}
    if values["observers"]["wandb"]["group"] is None:
        values["observers"]["wandb"]["group"] = files.name
    return judged(values)


def _total(section: SweepSection, space: Space) -> int:
    """Raises: ConfigError for more than anybody can mean."""
    total = section.trials
    if section.sampler == "grid":
        count = sum(1 for _ in islice(space.points(), MOST + 1))
        total = min(total, count) if total else count
    if total > MOST:
        what = f"{total:,} trials, and {MOST:,} is the most of one sweep"
        raise ConfigError([Problem("sweep.trials", what, "sweep.trials=100")])
    return total


def _refuse_places(section: SweepSection, config: Config) -> None:
    """Raises: ConfigError, Refused for a place where trials cannot run, or not side by side."""
    kind, several = config.launch.kind, section.concurrency > 1
    if isinstance(config.launch, CloudLaunch):
        what = f"{kind} keeps its run folders elsewhere, and a sweep reads them here"
        raise ConfigError([Problem("launch", what, "launch=slurm, launch=ssh or launch=ray")])
    if several and (kind == "ssh" or (kind == "local" and device_of(config) == "cuda")):
        what = f"{section.concurrency} trials would begin on the same devices at once"
        raise ConfigError([Problem("sweep.concurrency", what, "sweep.concurrency=1")])
    standing = stand(config)
    plan = plan_of(standing, attempt=1, run_id="")
    backend_of(kind).preflight(plan)
    if not isinstance(config.launch, SlurmLaunch) or not config.launch.test_only:
        look_at_the_place(standing, plan)


def _refuse_population(section: SweepSection, space: Space, total: int) -> None:
    """Raises: ConfigError for settings that cannot change on the way, or too few trials."""
    keys = {key for one in space.corners() for key in as_settings(space.overrides(one))}
    frozen = sorted(key for key in keys if class_of(key)[0] != "branch")
    if frozen:
        meaning = class_of(frozen[0])[1]
        what = f"pbt changes settings while trials run, and not {frozen[0]} ({meaning})"
        raise ConfigError(
            [Problem("sweep.space", what, "settings of optimizer, schedule or batch")]
        )
    if total < section.pruner.factor:
        what = f"of {total} trials the worst 1/{section.pruner.factor} are none"
        raise ConfigError([Problem("sweep.trials", what, f"sweep.trials={section.pruner.factor}")])


def _refuse_metrics(section: SweepSection, configs: Sequence[Config]) -> None:
    """Raises: ConfigError for what no trial will report, as far as settings tell."""
    for metric in section.metrics:
        is_eval = metric.startswith("eval_")
        if not is_eval and metric not in STEP_METRICS:
            what = (
                f"nothing reports {metric!r}; there is {', '.join(STEP_METRICS[:3])} and eval_NAME"
            )
            raise ConfigError([Problem("sweep.metrics", what, "sweep.metrics=[eval_loss]")])
        if is_eval and any(config.evals.held_out_rows == 0 for config in configs):
            what = f"{metric} is never reported: evals.held_out_rows=0 makes no evaluation"
            raise ConfigError([Problem("sweep.metrics", what, "sweep.metrics=[loss]")])
    every = max(config.steps.eval_every or config.steps.total for config in configs)
    rules, total = section.pruner, max(config.steps.total for config in configs)
    if rules.kind != "none" and any(config.steps.epochs is not None for config in configs):
        what = "rungs are steps, and how many an epoch has is known once its data is prepared"
        raise ConfigError([Problem("steps.epochs", what, "steps.epochs=null steps.total=300")])
    looks_on = rules.kind in ("asha", "median")  # the others evaluate wherever they pause
    if looks_on and section.metrics[0].startswith("eval_") and every >= total:
        what = f"{rules.kind} needs evaluations on the way, and the first is at the last step"
        raise ConfigError(
            [Problem("steps.eval_every", what, f"steps.eval_every={rules.first_step}")]
        )
    if rules.kind != "none" and rules.first_step >= total:
        what = f"the first rung is step {rules.first_step}, and trials end at step {total}"
        fix = f"sweep.pruner.first_step={max(1, total // rules.factor**2)}"
        raise ConfigError([Problem("sweep.pruner.first_step", what, fix)])
