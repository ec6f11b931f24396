"""What the code of a user's own source raised, told in one sentence and with its traceback."""

from __future__ import annotations

import traceback
from types import TracebackType

from trainer.errors import DataError


def users_error(error: Exception, what: str) -> DataError:
    """`what` failed, where in the user's file and why; below it the traceback of that code alone.

    To be called where the error was caught: the frame that caught it is left out.
    """
    inner = error.__traceback__.tb_next if error.__traceback__ else None
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    first = said.splitlines()[0]
    if inner is None:  # our own call failed: wrong arguments, or nothing to iterate over
        return DataError(f"{what}: {first}; correct the class or its settings")
    below = "".join(traceback.format_exception(type(error), error, inner)).rstrip()
    return DataError(f"{what}: {first} ({_where(inner)}); correct that code\n\n{below}")


def _where(inner: TracebackType) -> str:
    """The deepest line of the file that was called first: what lies below it is a library's."""
    frames = traceback.extract_tb(inner)
    theirs = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{theirs[-1].filename} line {theirs[-1].lineno}, in {theirs[-1].name}"
