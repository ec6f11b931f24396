"""From overrides as Hydra users write them to a Space; Hydra's own parser reads them.

key=1,2   key=choice(a,b)   key=range(1,9,2)   group=a,b          a Choice
key=interval(1e-4,1e-2)   key=tag(log,interval(...))              an Interval
key=int(interval(1,64))                                           ... of whole numbers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.sweep.space import Choice, Condition, Dimension, Interval, Space
from trainer.config.sections.sweep import SweepSection
from trainer.errors import ConfigError, Problem

_EXAMPLE = "optimizer.learning_rate=1e-3,3e-4"
_OURS = ("run.name", "run.root")


@dataclass(frozen=True)
class Asked:
    """A command line taken apart. `fixed`: what all runs share; `sweep`: how it is swept."""

    fixed: tuple[str, ...]
    searched: tuple[str, ...]
    sweep: tuple[str, ...]


def taken_apart(overrides: Sequence[str]) -> Asked:
    """What cannot be read counts as fixed: `compose` says what is wrong with it."""
    fixed, searched, sweep = [], [], []
    for text in overrides:
        if text.lstrip("+~").partition("=")[0].partition(".")[0] == "sweep":
            sweep.append(text)
        elif _parsed(text) is not None and _parsed(text).is_sweep_override():
            searched.append(text)
        else:
            fixed.append(text)
    return Asked(tuple(fixed), tuple(searched), tuple(sweep))


def space_of(section: SweepSection, searched: Sequence[str] = ()) -> Space:
    """`searched`: besides what the section says. Raises: ConfigError with every problem."""
    problems: list[Problem] = []
    found: dict[str, Dimension] = {}
    for text in (*section.space, *searched):
        _add(found, _dimension(text, problems), problems)
    for name, alternatives in section.joint.items():
        _add(found, _joint(name, alternatives, problems), problems)
    for one in section.conditional:
        when = _condition(one.when, found, problems)
        for text in one.space:
            dimension = _dimension(text, problems)
            if dimension is not None and when is not None:
                _add(found, replace(dimension, when=when), problems)
    if not found and not problems:
        what = "there is nothing to search: no setting has several values"
        problems.append(Problem("sweep.space", what, _EXAMPLE))
    problems += _unfit(section, found)
    problems += _set_twice(found)
    if problems:
        raise ConfigError(problems)
    return Space(tuple(found.values()))


def keys_of(overrides: Sequence[str]) -> list[str]:
    """Settings that plain overrides give a value, as `optimizer.learning_rate`."""
    return [text.lstrip("+").partition("=")[0] for text in overrides]


def as_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """key -> plain value, of overrides of one value each; groups too."""
    values: dict[str, Any] = {}
    for text in overrides:
        override = _parsed(text)
        if override is not None and not override.is_delete():
            values[text.lstrip("+").partition("=")[0]] = _plain(override.value())
    return values


def _plain(value: Any) -> Any:
    """Quoted text is its text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else value.text


def _parsed(text: str) -> Any:
    """None for what Hydra cannot read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _add(found: dict[str, Dimension], one: Dimension | None, problems: list[Problem]) -> None:
    if one is None:
        return
    if one.name in found:
        problems.append(Problem(one.name, "is searched twice", f"{one.name} once"))
    found[one.name] = one


def _dimension(text: str, problems: list[Problem]) -> Dimension | None:
    key = text.lstrip("+").partition("=")[0]
    override = _parsed(text)
    wrong = ""
    if override is None:
        wrong = f"cannot read {text.partition('=')[2]!r} as values to search"
    elif not override.is_sweep_override():
        wrong = "has one value, and a space needs several"
    elif key in _OURS:
        wrong = "is what the sweep calls each trial itself"
    elif override.is_interval_sweep():
        return _interval(key, override.value(), problems)
    elif not override.is_discrete_sweep() or not hasattr(override.value(), "tags"):
        wrong = f"{text.partition('=')[2]} does not say which values; a space needs each by name"
    elif getattr(override.value(), "shuffle", False):
        wrong = "shuffle() is another order each time; the sampler decides the order"
    if wrong:
        problems.append(Problem(key or repr(text), wrong, _EXAMPLE))
        return None
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    return Choice(key, tuple((f"{key}={value}",) for value in values))


def _interval(key: str, value: Any, problems: list[Problem]) -> Interval | None:
    low, high = value.start, value.end
    is_whole, is_log = isinstance(low, int) and isinstance(high, int), "log" in value.tags
    if unknown := sorted(set(value.tags) - {"log"}):
        problems.append(Problem(key, f"there is no tag {unknown[0]!r}; there is log", ""))
    elif not low < high:
        what = f"interval({low},{high}) holds nothing to search"
        problems.append(
            Problem(key, what, f"{key}=interval({min(low, high)},{max(low, high) + 1})")
        )
    elif is_log and low <= 0:
        what = f"a logarithmic interval begins above 0, not at {low}"
        problems.append(Problem(key, what, f"{key}=tag(log,interval({high / 1000:g},{high:g}))"))
    else:
        return Interval(key, low, high, is_whole=is_whole, is_log=is_log)
    return None


def _joint(
    name: str, alternatives: Sequence[Sequence[str]], problems: list[Problem]
) -> Choice | None:
    where = f"sweep.joint.{name}"
    if len(alternatives) < 2 or not all(alternatives):
        problems.append(
            Problem(where, "needs two alternatives or more, each of some key=value", "")
        )
        return None
    wrong = [
        text
        for texts in alternatives
        for text in texts
        if (one := _parsed(text)) is None or one.is_sweep_override() or one.is_delete()
    ]
    if wrong:
        what = f"{wrong[0]!r} is no key=value; an alternative gives each setting one value"
        problems.append(Problem(where, what, ""))
        return None
    return Choice(name, tuple(tuple(texts) for texts in alternatives))


def _condition(
    text: str, found: Mapping[str, Dimension], problems: list[Problem]
) -> Condition | None:
    name, _, value = text.partition("=")
    one = found.get(name)
    if isinstance(one, Choice):
        for place, alternative in enumerate(one.alternatives):
            if alternative == (f"{name}={_as_typed(value)}",):
                return Condition(name, place)
        there = ", ".join(texts[0] for texts in one.alternatives)
        problems.append(Problem("sweep.conditional", f"{text!r} is never so; there is {there}", ""))
        return None
    what = f"{text!r} is no alternative of the space above it"
    problems.append(
        Problem("sweep.conditional", what, f"{name}=a,b in the space, and when {name}=a")
    )
    return None


def _as_typed(value: str) -> str:
    """1e-3 and 0.001 are the same alternative."""
    override = _parsed(f"x={value},{value}")
    return value if override is None else next(iter(override.sweep_string_iterator()))


def _unfit(section: SweepSection, found: Mapping[str, Dimension]) -> list[Problem]:
    if section.sampler == "grid":
        endless = [one.name for one in found.values() if isinstance(one, Interval)]
        what = "an interval has no end of values; a grid needs each by name"
        return [Problem(name, what, f"{name}=1,2 or sweep=default") for name in endless]
    if section.sampler == "cmaes":
        numbers = [one for one in found.values() if isinstance(one, Interval) and not one.when]
        if len(numbers) < max(len(found), 2):
            what = "cmaes moves two numbers or more, each an interval that always applies"
            return [Problem("sweep.sampler", what, "sweep.sampler=tpe")]
    return []


def _set_twice(found: Mapping[str, Dimension]) -> list[Problem]:
    """A setting of two dimensions that can hold at once: the last would win, unseen."""
    owners: dict[str, Dimension] = {}
    problems: list[Problem] = []
    for one in found.values():
        texts = [t for a in one.alternatives for t in a] if isinstance(one, Choice) else [one.name]
        for key in dict.fromkeys(keys_of(texts)):
            other = owners.setdefault(key, one)
            if other is not one and not (other.when and one.when and other.when != one.when):
                what = f"is searched by {other.name} and by {one.name}"
                problems.append(Problem(key, what, f"{key} in one of them"))
    return problems
