"""Which column means what: the user's mapping, then names that leave no doubt.

columns: {text: [title, body], label: category, target: translation.de}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.sections.examples import Columns, FieldName
from trainer.data.formats.rows import Row, Wanted
from trainer.errors import DataError

# Names under which data sets carry a field, besides the field's own. One of them present: that is
# it. Several: the user says which.
ALIASES: Mapping[FieldName, tuple[str, ...]] = {
    "text": ("sentence", "sentence1", "premise", "content", "review", "body", "comment_text"),
    "text_pair": ("sentence2", "hypothesis", "text2", "text_b"),
    "label": ("category", "class", "sentiment", "intent", "relation", "score", "rating"),
    "labels": ("categories", "classes", "label_list"),
    "tokens": ("words",),
    "tags": ("ner_tags", "ner", "pos_tags", "bio_tags", "token_labels"),
    "head": ("subject", "e1"),
    "tail": ("object", "e2"),
    "question": ("query",),
    "context": ("passage", "paragraph"),
    "answers": ("answer",),
    "source": ("src", "input", "question", "prompt", "instruction", "document", "article",
               "dialogue", "dialog", "description", "docstring"),
    "target": ("tgt", "output", "answer", "response", "completion", "summary", "highlights",
               "abstract", "code", "translation"),
    "references": (),
    "prompt": ("question", "instruction", "input"),
    "chosen": ("preferred", "accepted"),
    "rejected": ("dispreferred", "declined"),
    "group": (),
}  # fmt: skip
LISTS = frozenset({"references", "labels", "head", "tail"})


@dataclass(frozen=True)
class Layout:
    """Where each field of a record is found in a row. `detected`: those the user did not name."""

    columns: Mapping[FieldName, Columns]
    detected: frozenset[FieldName]
    every: bool  # nothing was wanted in particular: all other columns come along

    def said(self) -> str:
        """For people: "text <- title body, label <- category (detected)"."""
        parts = []
        for field, names in self.columns.items():
            listed = names if isinstance(names, str) else " + ".join(names)
            tail = " (detected)" if field in self.detected and listed != field else ""
            parts.append(f"{field} <- {listed}{tail}")
        return ", ".join(parts)


def layout_of(
    row: Row, given: Mapping[FieldName, Columns], wanted: Wanted, *, source: str = "NAME"
) -> Layout:
    """Decided by the names of the first row, and once for a source, whose name messages need.

    Raises: DataError for a column that is not there, cannot be told, or could be several.
    """
    columns: dict[FieldName, Columns] = dict(given)
    taken = {name for names in given.values() for name in _each(names)}
    for names in given.values():
        for name in _each(names):
            _look_up(row, name)
    free = [name for name in row.values if name not in taken]
    for field in wanted.every:
        if field in columns:
            continue
        found = field if field in free else _by_alias(row, field, free, wanted, source)
        if found is not None:
            columns[field] = found
        elif field in wanted.required:
            raise DataError(
                f"{row.file} has no column for '{field}' ({_known(row)}); {_set(source, field)}"
            )
    return Layout(columns, frozenset(set(columns) - set(given)), every=not wanted.every)


def fields_of(row: Row, layout: Layout, wanted: Wanted) -> dict[str, Any]:
    """The record's fields; null and missing optional ones are left out.

    Raises: DataError naming file and row.
    """
    fields: dict[str, Any] = {}
    if layout.every:
        fields.update({k: v for k, v in row.values.items() if v is not None})
    for field, names in layout.columns.items():
        optional = field in layout.detected and field not in wanted.required
        value = _value(row, field, names, optional=optional)
        if value is not None:
            fields[field] = value
    for field in wanted.optional:
        if field not in fields and row.values.get(field) is not None:
            fields[field] = row.values[field]
    for field in wanted.required:
        if field not in fields:
            raise DataError(f"{row.where}: '{field}' is null")
    return fields


def _value(row: Row, field: FieldName, names: Columns, *, optional: bool) -> Any:
    if isinstance(names, str):
        return row.values.get(names) if optional else _look_up(row, names)
    values = [_look_up(row, name) for name in names]
    if field == "labels":
        return _hot(names, values)
    if field in LISTS:
        return values
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{row.where}: '{field}' joins {' and '.join(names)}, which are not texts")
    return " ".join(value for value in values if value)


def _hot(names: Iterable[str], values: Iterable[Any]) -> list[str]:
    """Several columns of 0 and 1: the names of those that say yes."""
    yes = (1, True, "1", "true", "True", "yes")
    return [name for name, value in zip(names, values, strict=True) if value in yes]


def _look_up(row: Row, name: str) -> Any:
    if name in row.values:
        return row.values[name]
    found: Any = row.values
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            hint = ""
            if name.isdigit():
                hint = "; columns of a file without a line of names are numbered with header=false"
            raise DataError(f"{row.where} has no column '{name}' ({_known(row)}){hint}")
        found = found[part]
    return found


def _by_alias(
    row: Row, field: FieldName, free: list[str], wanted: Wanted, source: str
) -> str | None:
    lowered = {name.lower(): name for name in free if name not in wanted.every}
    found = [lowered[alias] for alias in ALIASES.get(field, ()) if alias in lowered]
    if len(found) > 1 and field in wanted.required:
        several = " and ".join(f"'{name}'" for name in found)
        raise DataError(
            f"{row.file}: '{field}' could be {several}; {_set(source, field, found[0])}"
        )
    return found[0] if len(found) == 1 else None


def _set(source: str, field: str, name: str = "COLUMN") -> str:
    return f"name it: data.sources.{source}.columns.{field}={name}"


def _known(row: Row) -> str:
    names = [str(name) for name in row.values]
    listed = ", ".join(name[:30] for name in names[:8]) + (", ..." if len(names) > 8 else "")
    tail = ""
    if names and any(len(name) > 30 or " " in name for name in names):
        tail = "; if its first line is data and not names, set header=false"
    return f"it has: {listed}{tail}"


def _each(names: Columns) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
