"""The user's own tool (sky, kubectl, ray): called with argument lists, its words passed on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.errors import Refused
from trainer.records.redact import redactor_of

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LAST_CHARS = 300


@dataclass(frozen=True)
class Answer:
    """`code` None: the tool is not installed, or gave no answer in time."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def why(self) -> str:
        """What it said last, in one line, without keys."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        said = redactor_of(os.environ).text("; ".join(lines))
        return said[-_LAST_CHARS:] or f"exit code {self.code}"


def refuse_without(tool: str, *, kind: str, how: str) -> None:
    """Raises: Refused if `tool` is not on PATH. `how` it is installed."""
    if shutil.which(tool) is None:
        raise Refused(f"launch={kind} calls `{tool}`, which is not on PATH; {how}")


def ask(
    argv: Sequence[str], *, timeout_s: float, stdin: str = "", env: Mapping[str, str] | None = None
) -> Answer:
    """Run to its end with nothing shown. `env` comes on top of ours."""
    try:
        done = subprocess.run(
            list(argv),
            env=dict(os.environ) | dict(env or {}),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except OSError as e:  # not there, not allowed, more words than a command may have
        return Answer(None, err=f"{argv[0]} cannot be started ({e.strerror})")
    except subprocess.TimeoutExpired:
        return Answer(None, err=f"{argv[0]} gave no answer in {timeout_s:.0f} s")
    return Answer(done.returncode, _plain(done.stdout), _plain(done.stderr))


def tell(argv: Sequence[str]) -> Answer:
    """Run to its end, its words shown as they come: machines take minutes. No time limit: who
    gives up meanwhile would leave machines behind that nobody knows of."""
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as e:  # not there, not allowed, more words than a command may have
        return Answer(None, err=f"{argv[0]} cannot be started ({e.strerror})")
    redactor, lines = redactor_of(os.environ), []
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(_plain(line))
            print(redactor.text(line), end="", file=sys.stderr, flush=True)
    return Answer(child.returncode, "".join(lines))


def _plain(text: str) -> str:
    return _COLOURS.sub("", text)
