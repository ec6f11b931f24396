"""Programs that a model wrote for a problem, and what its tests say of them."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import DataError, Refused
from trainer.evals.metrics.sandbox import Outcome

_RESERVED = ("answer", "tests")


@dataclass(frozen=True, kw_only=True)
class ProgramForm:
    """`tests`: the field of a problem's tests, a text or a list of lines. `template`: how answer
    and tests become one program; {answer} and {tests} are these, other names fields of the row.
    """

    tests: str
    template: str = "{answer}\n{tests}\n"

    def __post_init__(self) -> None:
        """Raises: Refused for a template that leaves out the answer or its tests."""
        try:
            named = {name for _, name, _, _ in string.Formatter().parse(self.template)}
        except ValueError as e:
            raise Refused(f"--program {self.template!r}: {e}; write {{{{ for a brace") from e
        missing = [f"{{{name}}}" for name in _RESERVED if name not in named]
        if missing:
            what = " and ".join(missing)
            raise Refused(f"--program {self.template!r} leaves out {what}: nothing would be tested")

    def program(self, fields: Mapping[str, Any], answer: str, *, where: str) -> str:
        """Raises: DataError naming the row, where its tests or another field are not there."""
        known = dict(fields) | {"answer": answer, "tests": self._tests(fields, where)}
        parts = []
        for text, name, _, _ in string.Formatter().parse(self.template):
            if name is not None and name not in known:
                raise DataError(
                    f"{where} has no field {name!r} (it has {', '.join(fields)}), which --program "
                    "names"
                )
            # Names alone: "{a.b}" or "{a[0]}" would reach into objects.
            parts.append(text if name is None else text + str(known[name]))
        return "".join(parts)

    def _tests(self, fields: Mapping[str, Any], where: str) -> str:
        if self.tests not in fields:
            raise DataError(
                f"{where} has no field {self.tests!r} (it has {', '.join(fields)}), which --tests "
                "names"
            )
        found = fields[self.tests]
        text = "\n".join(map(str, found)) if isinstance(found, list) else found
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{where}: {self.tests} holds no tests; a text or a list of lines of Python, such "
                "as 'assert f(1) == 2' (a program without tests would always pass)"
            )
        return text


class Judge:
    """Runs each program once, however often it was written."""

    def __init__(self, run: Callable[[str], Outcome]) -> None:
        self._run = run
        self._known: dict[str, Outcome] = {}

    def __call__(self, program: str) -> Outcome:
        if program not in self._known:
            self._known[program] = self._run(program)
        return self._known[program]


def cut(text: str, ends: Sequence[str]) -> str:
    """The text before whichever of `ends` comes first."""
    places = [at for end in ends if end and (at := text.find(end)) >= 0]
    return text[: min(places)] if places else text


def ks_named(text: str, *, samples: int) -> tuple[int, ...]:
    """Of "1,10". Raises: Refused for what is no number of programs, or more than there are."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Refused(f"--k {text}: give whole numbers from 1 on, with commas between")
    ks = tuple(sorted({int(part) for part in parts}))
    if ks[-1] > samples:
        raise Refused(f"--k {ks[-1]} needs as many programs a problem: --samples {ks[-1]}")
    return ks
