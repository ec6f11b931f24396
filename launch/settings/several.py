"""Settings of several runs from one command line: `train -m optimizer.learning_rate=1e-3,3e-4`.

Every combination is a run of its own; its name says which: first-run-learning_rate-0.001. The same
command line later means the same runs again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.schema import Config
from trainer.errors import ConfigError, Problem

_LONGEST = 64  # characters of a name
_MOST = 10_000  # runs of one command: one more is a slip of the keyboard


@dataclass(frozen=True)
class Member:
    """One run. `chosen`: the overrides that make it another one than its siblings."""

    config: Config
    chosen: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.config.run.name


def members(
    overrides: Sequence[str], *, config_dirs: Sequence[str] = ()
) -> tuple[list[Member], str]:
    """Checked in full, in the order in which the values were written; the last one varies fastest.
    And the name that they have in common.

    Raises: ConfigError with the problems of all of them, each problem once.
    """
    from launch.compose import combinations, compose
    from trainer.planning import judged

    asked = combinations(overrides)
    if len(asked) > _MOST:
        what = f"{len(asked):,} runs are asked for at once, and {_MOST:,} is the most"
        raise ConfigError([Problem("train -m", what, "fewer values")])
    found: list[Member] = []
    common = ""
    problems: dict[Problem, list[str]] = {}
    for one in asked:
        chosen = tuple(text for text, is_one_of_several in one if is_one_of_several)
        try:
            values = compose([text for text, _ in one], config_dirs=config_dirs).values
            common = common or str(values["run"]["name"])
            values["run"]["name"] = name_of(str(values["run"]["name"]), chosen)
            found.append(Member(judged(values), chosen))
        except ConfigError as e:
            for problem in e.problems:
                problems.setdefault(problem, []).append(" ".join(chosen))
    if problems:
        raise ConfigError([_of_some(p, who, total=len(asked)) for p, who in problems.items()])
    _refuse_twins(found)
    return found, common


def name_of(base: str, chosen: Sequence[str]) -> str:
    """The run's name: what is swept, short; with a digest where that is no name."""
    swept = [text.lstrip("+") for text in chosen if not text.lstrip("+").startswith("run.name=")]
    words = [f"{re.split(r'[./]', key)[-1]}-{value}" for key, _, value in map(_parts, swept)]
    text = "-".join([base, *words])
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text)
    if name == text and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256("\n".join([base, *swept]).encode()).hexdigest()[:6]
    return f"{name[: _LONGEST - 7]}-{digest}"


def _parts(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def _of_some(problem: Problem, who: Sequence[str], *, total: int) -> Problem:
    """With the runs that have it, unless all do."""
    if len(who) == total:
        return problem
    others = f" and {len(who) - 1} more" if len(who) > 1 else ""
    return Problem(problem.where, f"{problem.what} (with {who[0]}{others})", problem.fix)


def _refuse_twins(found: Sequence[Member]) -> None:
    """Raises: ConfigError if two runs would have one folder."""
    folders: dict[tuple[str, str], Member] = {}
    for one in found:
        other = folders.setdefault((one.config.run.root, one.name), one)
        if other is not one:
            both = f"{' '.join(other.chosen)} and {' '.join(one.chosen)}"
            what = f"{both} would both be the run {one.name}"
            raise ConfigError([Problem("run.name", what, "each value once")])
