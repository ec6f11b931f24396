"""What a driver and its agents say to each other, over whatever carries bytes between them.

    driver -> agent   {"do": "meet", "host": H, "port": P}   where rank 0 waits
                      {"do": "signal", "number": N}          save and stop
                      {"do": "look"}                         which of your ranks is furthest behind?
                      {"do": "end"}                          the attempt is over: end your ranks
                      {"do": "beat"}                         the driver lives
                      {"do": "next", "attempt": N, "node": K}   start the ranks of that one
    agent -> driver   {"meet": [H, P]}                       of the first node
                      {"hang": {...}}                        a finding (launch/watch/finding.py)
                      {"over": CODE}                         the attempt is over here; I stay
                      {"stays": true}                        to every beat from then on

An agent's messages stand between what rank 0 prints, each after a record separator. Standard
library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MARK = b"\x1e"  # ASCII record separator; no program prints it
_LONGEST = 1 << 20


def packed(message: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message).encode() + b"\n"


def packed_among_output(message: Mapping[str, Any]) -> bytes:
    return _MARK + packed(message)


@dataclass
class Lines:
    """Messages out of a stream of bytes in pieces of any size."""

    _rest: bytes = field(default=b"")

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [found for line in lines if (found := _read(line)) is not None]


@dataclass
class Mixed:
    """The same where messages stand between other output, which is handed on as it comes."""

    _rest: bytes = field(default=b"")

    def feed(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """(messages, output)."""
        data, self._rest = self._rest + data, b""
        messages, output = [], []
        while data:
            before, mark, after = data.partition(_MARK)
            output.append(before)
            line, newline, data = after.partition(b"\n")
            if mark and not newline and len(line) < _LONGEST:
                self._rest = mark + line
            elif mark and (found := _read(line)) is not None:
                messages.append(found)
        return messages, b"".join(output)


def _read(line: bytes) -> dict[str, Any] | None:
    """None for what is no message: nothing follows from it."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
