"""A mapping becomes a Config, or an error with every problem in it: where, what, what to type.

pydantic finds the problems; this file says them in the user's words. Its own paths hold the tags
of unions ("model.shape.hidden_size"), which no user has typed: they are taken out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.config import rules
from trainer.config.fields import (
    example,
    examples,
    known_settings,
    sections_with,
    takes_number,
    type_in_words,
)
from trainer.config.names import nearest, nearest_setting, or_list
from trainer.config.schema import Config
from trainer.config.sections.run import NAME_PATTERN
from trainer.errors import ConfigError, Problem

# Kinds whose files are not called as they are: a choice that has this kind.
_RANGE = re.compile(r"0*([1-9]\d{0,5}) *(?:\.\.+|-|:) *0*([1-9]\d{0,5})")
_FEWER_NODES = ("ssh", "ray")  # places that go on with some of a run's machines
_CHOICES = {"deepspeed": "zero2", "shape": "llama_debug", "folder": "hf_folder"}


def validate(values: dict[str, Any]) -> Config:
    """Types and names, ranges, then the rules between sections.

    Raises: ConfigError with every problem of the first of these that has any.
    """
    config, found = _judged(values)
    if config is not None and not found:
        found = rules.problems(config)
        if not found:
            return config
    raise ConfigError(found)


def problems(values: dict[str, Any]) -> list[Problem]:
    """Types, names and ranges only, as a list: rules would judge what was not chosen yet."""
    return _judged(values)[1]


def missing(values: dict[str, Any]) -> list[list[str]]:
    """Paths of settings and whole sections that have no value and need one."""
    try:
        Config.model_validate(values)
    except ValidationError as e:
        found = e.errors(include_url=False)
        return [_typed_path(d["loc"], values) for d in found if d["type"] == "missing"]
    return []


def _judged(values: dict[str, Any]) -> tuple[Config | None, list[Problem]]:
    found = list(_truths(values))
    try:
        return Config.model_validate(values), found
    except ValidationError as e:
        return None, [*found, *_explained(e, values)]


def _truths(values: dict[str, Any]) -> Iterator[Problem]:
    """true and false where a number belongs: pydantic would count them as 1 and 0."""
    for key, value in _leaves("", values):
        path = key.split(".")
        if isinstance(value, bool) and takes_number(path, values):
            words = type_in_words(path, values)
            fix = f"{key}={_as_override(example(path, values))}"
            yield Problem(key, f"must be {words}, not {_as_override(value)}", fix)


def _explained(error: ValidationError, values: dict[str, Any]) -> list[Problem]:
    found: list[Problem] = []
    details = error.errors(include_url=False)
    others = {d["loc"][:-1] for d in details if d["type"] != "literal_error"}
    for detail in details:
        if detail["type"] == "literal_error" and detail["loc"][:-1] in others and _is_tag(detail):
            continue  # a number or a word: what is wrong with the number is said
        for problem in _problems_of(detail, values):
            if problem not in found:
                found.append(problem)
    return found


def _is_tag(detail: ErrorDetails) -> bool:
    """Whether the last part of the path is pydantic's name for a branch of a union."""
    return str(detail["loc"][-1]).startswith("literal[")


def _problems_of(detail: ErrorDetails, values: dict[str, Any]) -> Iterator[Problem]:
    path = _typed_path(detail["loc"], values)
    where = ".".join(path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        for key, value in _leaves(where, detail["input"]):
            yield _unknown(key, value, values)
    elif kind == "missing":
        yield Problem(where, "has no value and needs one", f"{where}={example(path, values)}")
    elif kind in ("union_tag_invalid", "literal_error"):
        yield _wrong_word(where, detail, values)
    elif kind == "union_tag_not_found":
        yield _misnamed_entry(where, values) or _without_kind(where, values)
    else:
        yield _wrong_value(where, path, detail, values)


def _typed_path(loc: tuple[int | str, ...], values: Any) -> list[str]:
    """`loc` without the tags of discriminated unions."""
    path: list[str] = []
    here = values
    for i, part in enumerate(loc):
        is_last = i == len(loc) - 1
        if i and (not isinstance(here, dict | list) or str(part).startswith("constrained-")):
            break  # what follows names a branch of a union of plain types
        if isinstance(here, dict):
            if part not in here and here.get("kind", "text") == part and not is_last:
                continue  # data of text says no kind (schema.py)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        path.append(str(part))
    return path


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), below)
    else:
        yield prefix, value


def _unknown(key: str, value: Any, values: dict[str, Any]) -> Problem:
    owners = sections_with(key, values)
    if owners:
        section = key.rpartition(".")[0]
        kind = _at(values, section)["kind"]
        what = f"{section}.kind={kind} has no such setting; {or_list(owners)} has"
        choice = _CHOICES.get(owners[0], owners[0]) if "." not in section else ""
        return Problem(key, what, f"{section}={choice}" if choice else f"leave {key} out")
    near = nearest_setting(key, known_settings(values))
    if near is None:
        return Problem(key, "unknown setting", "longhaul train --cfg job lists every setting")
    fix = f"{near}={_as_override(value)}"
    return Problem(key, f"unknown setting; did you mean {near}?", fix)


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values


def _wrong_word(where: str, detail: ErrorDetails, values: dict[str, Any]) -> Problem:
    context = detail.get("ctx", {})
    section = ""
    if detail["type"] == "union_tag_invalid":
        section, where = where, f"{where}.kind"
        given = str(context["tag"])
        raw = str(context["expected_tags"])
    else:
        given = str(detail["input"])
        raw = str(context["expected"]).replace(" or ", ", ")
    allowed = [word.strip().strip("'") for word in raw.split(",")]
    near = nearest(given, allowed)
    if near is None and section and isinstance(detail["input"], dict):
        near = _fitting_kind(section, list(detail["input"]), allowed, values=values)
    near = near or allowed[0]
    fix = f"{where}={near}"
    if section and "." not in section:  # the other settings of the section belong to its kind
        fix = f"{section}={_CHOICES.get(near, near)}"
    return Problem(where, f"must be {or_list(allowed)}, not {given!r}", fix)


def _fitting_kind(
    section: str, given: list[str], allowed: list[str], *, values: dict[str, Any]
) -> str | None:
    """The first kind that has all settings given beside it."""
    known = [set(sections_with(f"{section}.{own}", values)) for own in given if own != "kind"]
    return next((kind for kind in allowed if all(kind in kinds for kinds in known)), None)


def _misnamed_entry(where: str, values: dict[str, Any]) -> Problem | None:
    """`data.sources.jsonl.paths=...`, where the source that has paths is named otherwise."""
    parent, _, name = where.rpartition(".")
    entries = _at(values, parent) if parent else {}
    given = entries.get(name)
    if not parent or not isinstance(given, dict) or not given:
        return None
    known = known_settings(values)
    for other, entry in entries.items():
        right = f"{parent}.{other}"
        if not isinstance(entry, dict) or "kind" not in entry:
            continue
        if all(f"{right}.{own}" in known for own in given):
            what = f"there is no {name} in {parent}; did you mean {other}?"
            fix = " ".join(f"{right}.{own}={_as_override(v)}" for own, v in given.items())
            return Problem(where, what, fix)
    return None


def _without_kind(where: str, values: dict[str, Any]) -> Problem:
    kinds = sections_with(f"{where}.kind", values)
    given = _at(values, where)
    beside = list(given) if isinstance(given, dict) else []
    kind = _fitting_kind(where, beside, kinds, values=values) or kinds[0]
    fix = f"{where}.kind={kind}"
    if "." not in where:
        fix = f"{where}={_CHOICES.get(kind, kind)}"
    return Problem(f"{where}.kind", f"has no value and needs one: {or_list(kinds)}", fix)


def _wrong_value(
    where: str, path: list[str], detail: ErrorDetails, values: dict[str, Any]
) -> Problem:
    given = detail["input"]
    if path == ["resources", "nodes"] and (ends := _RANGE.fullmatch(str(given))):
        launch = values.get("launch")
        if isinstance(launch, dict) and launch.get("kind") in _FEWER_NODES:
            least, most = sorted(map(int, ends.groups()))
            what = f"is one number, not {given!r}: the most; resources.min_nodes is the fewest"
            return Problem(where, what, f"{where}={most} resources.min_nodes={least}")
    reason = _reason(detail) or f"must be {type_in_words(path, values)}"
    if not _reason(detail) and detail["type"] == "string_pattern_mismatch":
        shown = or_list(examples(path, values)) or str(detail["ctx"]["pattern"])
        reason = f"must look like {shown}"
    inside = next((key for key in known_settings(values) if key.startswith(f"{where}.")), where)
    fix = f"{inside}={_as_override(example(inside.split('.'), values, given=given))}"
    fix = shlex.quote(fix) if " " in fix else fix
    return Problem(where, f"{reason}, not {_shown(given)}", fix)


def _reason(detail: ErrorDetails) -> str:
    """The rule in words, for the rules that the type alone does not say."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than":
            return f"must be more than {_limit(context['gt'])}"
        case "greater_than_equal":
            return f"must be at least {_limit(context['ge'])}"
        case "less_than":
            return f"must be less than {_limit(context['lt'])}"
        case "less_than_equal":
            return f"must be at most {_limit(context['le'])}"
        case "too_short":
            return f"needs at least {context['min_length']} entry"
        case "string_pattern_mismatch" if context["pattern"] == NAME_PATTERN:
            return "may hold 64 letters, digits, '.', '_' and '-', and not start with '.' or '-'"
        case "finite_number":
            return "must be a finite number"
    return ""


def _limit(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel | dict):
        return "a mapping"
    return repr(value)


def _as_override(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_override(v) for v in value)}]"
    return str(value)
