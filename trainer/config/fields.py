"""What the schema knows about a dotted setting: names, its type in words, a value that works."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.config.schema import Config
from trainer.config.sections.base import MOST
from trainer.config.sections.run import NAME_PATTERN

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def known_settings(values: dict[str, Any]) -> list[str]:
    """Every dotted setting there is, given the kinds chosen in `values`; no sections."""
    return list(_settings(Config, values, ""))


def sections_with(key: str, values: dict[str, Any]) -> list[str]:
    """Kinds whose section has the last name of `key`, where the chosen kind of `key` has not."""
    section, _, own = key.rpartition(".")
    field = _field(section.split("."), values) if section else None
    if field is None:
        return []
    owners = [s for s in _branches(field.annotation) if own in s.model_fields]
    return [str(kind) for s in owners for kind in _kinds_of(s)]


def type_in_words(path: list[str], values: dict[str, Any]) -> str:
    field = _field(path, values)
    if field is None:
        return "a valid value"
    annotation, optional = _without_none(field.annotation)
    annotation, others = _without_words(annotation)
    words = WORDS.get(annotation, "") if isinstance(annotation, type) else ""
    if not words:
        words = "a list" if get_origin(annotation) is tuple else "a section of settings"
    words = " or ".join([words, *others])
    return f"{words} or null" if optional else words


def takes_number(path: list[str], values: dict[str, Any]) -> bool:
    field = _field(path, values)
    return field is not None and _type_of(field) in (int, float)


def example(path: list[str], values: dict[str, Any], *, given: Any = None) -> Any:
    """A value of the right type and in range; near `given` where that can be."""
    field = _field(path, values)
    if field is None:
        return "..."
    annotation = _type_of(field)
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if annotation is bool:
        return True
    if annotation in (int, float):
        return _number(field, given, whole=annotation is int)
    if get_origin(annotation) is tuple:
        return [given] if isinstance(given, str) and given else ["..."]
    if annotation is str and is_name(path, values):
        return _as_name(given)
    if annotation is str and field.examples:
        return field.examples[0]
    return "..."


def is_name(path: list[str], values: dict[str, Any]) -> bool:
    """Whether the setting takes only what may be the name of a run's folder."""
    field = _field(path, values)
    return field is not None and NAME_PATTERN in _patterns(field)


def examples(path: list[str], values: dict[str, Any]) -> list[Any]:
    """What the schema itself names for a setting; may be empty."""
    field = _field(path, values)
    return list(field.examples or ()) if field is not None else []


def _patterns(field: FieldInfo) -> list[str]:
    return [rule.pattern for rule in _rules(field) if getattr(rule, "pattern", None)]


def _as_name(given: Any) -> str:
    """The name most like `given` that is accepted: accents are left out, the rest is '-'."""
    text = unicodedata.normalize("NFKD", given if isinstance(given, str) else "")
    text = "".join(c for c in text if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-")[:64].rstrip("-.") or "first-run"


def _number(field: FieldInfo, given: Any, *, whole: bool) -> Any:
    """Near `given`; where nothing near would do, what the schema names, or a word it takes."""
    low, high = _bounds(field, whole=whole)
    number = _number_in(given)
    words = _without_words(_without_none(field.annotation)[0])[1]
    if number is not None and number > high and words:
        return words[0]
    is_right = number is not None and low <= number <= high and number == int(number)
    if field.examples and not is_right:
        return field.examples[0]
    value = min(max(abs(number) if number is not None else 1, low), high)
    return int(value) if whole or value == int(value) else value


def _number_in(given: Any) -> float | int | None:
    """None: there is none, or it is not finite. "10k" has 10."""
    if isinstance(given, str):
        digits = re.match(r"^[\d_,]*\d", given)
        given = float(digits[0].replace(",", "").replace("_", "")) if digits else None
    if not isinstance(given, int | float) or isinstance(given, bool):
        return None
    return given if given == given and abs(given) != float("inf") else None


def _bounds(field: FieldInfo, *, whole: bool) -> tuple[float, float]:
    """The least and the largest value worth proposing."""
    low, high = 0.0, float(MOST)
    for rule in _rules(field):
        low = getattr(rule, "ge", low)
        if getattr(rule, "gt", None) is not None:
            low = rule.gt + (1 if whole else 0.001)
        high = getattr(rule, "le", high)
        if getattr(rule, "lt", None) is not None:
            high = rule.lt - 1 if whole else rule.lt * 0.9
    return low, high


def _rules(field: FieldInfo) -> Iterator[Any]:
    """Limits and patterns, those of a part of a union (`a number or auto`) as well."""
    yield from field.metadata
    if get_origin(field.annotation) in (Union, UnionType):
        for part in get_args(field.annotation):
            if get_origin(part) is Annotated:
                for inner in get_args(part)[1:]:
                    yield from inner.metadata


def _settings(section: type[BaseModel], values: Any, prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        dotted = f"{prefix}{name}"
        below = values.get(name) if isinstance(values, dict) else None
        branches = list(_branches(field.annotation))
        if get_origin(field.annotation) is dict and branches:
            for key, value in (below or {}).items():
                yield from _settings(_chosen(branches, value), value, f"{dotted}.{key}.")
        elif branches:
            yield from _settings(_chosen(branches, below), below, f"{dotted}.")
        else:
            yield dotted


def _field(path: list[str], values: Any) -> FieldInfo | None:
    """The field behind a dotted path, through unions (by the kind in `values`), dicts and lists."""
    section: type[BaseModel] = Config
    field: FieldInfo | None = None
    parts = iter(path)
    for part in parts:
        field = section.model_fields.get(part)
        if field is None:
            return None
        values = values.get(part) if isinstance(values, dict) else None
        branches = list(_branches(field.annotation))
        if get_origin(field.annotation) is dict and branches:
            key = next(parts, None)
            values = values.get(key) if isinstance(values, dict) and key else None
        elif not branches:
            return field
        section = _chosen(branches, values)
    return field


def _chosen(branches: list[type[BaseModel]], values: Any) -> type[BaseModel]:
    kind = values.get("kind") if isinstance(values, dict) else None
    return next((b for b in branches if kind in _kinds_of(b)), branches[0])


def _kinds_of(section: type[BaseModel]) -> tuple[Any, ...]:
    """Several, where one section is of kinds that are set alike: lora and dora."""
    field = section.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def _branches(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections an annotation may be: one, those of a union, or those of a dict's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not tuple:
        for argument in get_args(annotation):
            if get_origin(annotation) is not Literal:
                yield from _branches(argument)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, UnionType):
        options = [a for a in get_args(annotation) if a is not type(None)]
        if len(options) == 1:
            is_limited = get_origin(options[0]) is Annotated
            return get_args(options[0])[0] if is_limited else options[0], True
    return annotation, False


def _type_of(field: FieldInfo) -> Any:
    """Without `None` and without the words that may stand in the place of a number."""
    return _without_words(_without_none(field.annotation)[0])[0]


def _without_words(annotation: Any) -> tuple[Any, list[str]]:
    """`Annotated[int, ...] | Literal["auto"]` -> (int, ["auto"])."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, []
    words = [str(w) for a in get_args(annotation) if get_origin(a) is Literal for w in get_args(a)]
    rest = [a for a in get_args(annotation) if get_origin(a) is not Literal]
    if len(rest) != 1 or not words:
        return annotation, []
    return (get_args(rest[0])[0] if get_origin(rest[0]) is Annotated else rest[0]), words
