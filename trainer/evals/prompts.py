"""Questions made of rows and a template: with nothing before them, or with worked examples.

Question: {question}
Answer: <what the model is to say>
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import DataError, Refused


@dataclass(frozen=True)
class Posed:
    """`choices`: what may be answered, empty where the model writes freely; `right`: the answer."""

    prompt: str
    choices: tuple[str, ...]
    right: str

    def spelt(self, answer: str) -> str:
        """An answer as it follows the prompt."""
        return answer if self.prompt.endswith("\n") else f" {answer}"


@dataclass(frozen=True, kw_only=True)
class Form:
    """`template` names fields of a row in braces. `choices`: the answers there are; or
    `choices_field`, which holds a row's own. `answer`: the field of the right one: its text, or its
    number among the choices, counted from 0; "" where there is none to compare with.
    """

    template: str
    answer: str
    choices: tuple[str, ...] = ()
    choices_field: str = ""
    between: str = "\n\n"

    def __post_init__(self) -> None:
        """Raises: Refused for a template with no field, or braces that do not match."""
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(self.template) if name]
        except ValueError as e:
            raise Refused(f"--template {self.template!r}: {e}; write {{{{ for a brace") from e
        if not named:
            raise Refused(f"--template {self.template!r} names no field; write {{question}}, say")

    def posed(self, fields: Mapping[str, Any], *, before: str = "", where: str) -> Posed:
        """Raises: DataError naming the row."""
        choices = self._choices(fields, where)
        return Posed(
            before + self._filled(fields, where), choices, self._right(fields, choices, where)
        )

    def worked(self, fields: Mapping[str, Any], *, where: str) -> str:
        """A question with its answer, as an example for others."""
        one = self.posed(fields, where=where)
        return f"{one.prompt}{one.spelt(one.right)}{self.between}"

    def _filled(self, fields: Mapping[str, Any], where: str) -> str:
        try:
            # Fields alone: "{a.b}" or "{a[0]}" would reach into objects.
            return "".join(
                text + (str(_field(fields, name, where)) if name is not None else "")
                for text, name, _, _ in string.Formatter().parse(self.template)
            ).rstrip(" ")
        except DataError as e:
            raise DataError(f"{e}, which --template names") from e

    def _choices(self, fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
        if not self.choices_field:
            return self.choices
        found = _field(fields, self.choices_field, where)
        if not isinstance(found, list) or len(found) < 2:
            raise DataError(f"{where}: {self.choices_field} is not a list of two or more choices")
        return tuple(map(str, found))

    def _right(self, fields: Mapping[str, Any], choices: tuple[str, ...], where: str) -> str:
        given = _field(fields, self.answer, where) if self.answer else ""
        if not choices:
            return str(given)
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(choices):
            return choices[given]
        if str(given) in choices:
            return str(given)
        raise DataError(f"{where}: {self.answer}={given!r} is none of the choices {list(choices)}")


def shots(
    form: Form, rows: Sequence[tuple[Mapping[str, Any], str]], count: int, *, seed: int
) -> str:
    """`count` worked examples, drawn once for all questions. `rows`: (fields, where).

    Raises: Refused if there are fewer.
    """
    if len(rows) < count:
        raise Refused(f"--shots {count}: there are {len(rows)} rows to take examples from")
    chosen = random.Random(seed).sample(range(len(rows)), count)
    return "".join(form.worked(rows[i][0], where=rows[i][1]) for i in chosen)


def _field(fields: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        raise DataError(f"{where} has no field {name!r} (it has {', '.join(fields)})")
    return fields[name]
