"""Rank 0's output: shown live as it comes, and kept in its log as plain lines.

When our own output is a terminal, rank 0 gets a terminal too (a pty), so that it may draw
progress; the log then keeps each line as it last stood, without escape sequences.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import sys
import termios
from dataclasses import dataclass, field
from pathlib import Path

_ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")
_LONGEST_LINE = 1 << 20
_SHOW_CURSOR = b"\x1b[?25h"


@dataclass
class Console:
    """`writer` is for the rank; close it here once the rank is started."""

    reader: int
    writer: int
    log: io.FileIO
    is_terminal: bool
    _shown: bool = True
    _line: bytes = field(default=b"")

    def pump(self) -> bool:
        """Move what is there; False at the end of the output."""
        try:
            data = os.read(self.reader, 65536)
        except BlockingIOError:
            return True
        except OSError:  # a pty says EIO when the last writer is gone
            return False
        if not data:
            return False
        self._show(data)
        self._keep(data)
        return True

    def finish(self) -> None:
        """Move the rest and close. Never waits: a stray child may still hold the other end."""
        os.set_blocking(self.reader, False)
        while True:
            try:
                data = os.read(self.reader, 65536)
            except OSError:
                break
            if not data:
                break
            self._show(data)
            self._keep(data)
        if self.is_terminal:
            self._show(_SHOW_CURSOR)  # a killed rank cannot give the cursor back
        if self._line.strip():
            self._write(self._line)
        os.close(self.reader)
        self.log.close()

    def _show(self, data: bytes) -> None:
        if not self._shown:
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except (OSError, ValueError):  # the reader left (`| head`): the run goes on in its log
            self._shown = False

    def _keep(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._write(line)
        if b"\r" in self._line or len(self._line) > _LONGEST_LINE:
            self._line = self._line.rstrip(b"\r").rpartition(b"\r")[2][-_LONGEST_LINE:]

    def _write(self, line: bytes) -> None:
        if self.is_terminal:
            line = _ESCAPES.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])
            if not line.strip():
                return
        self.log.write(line + b"\n")


def open_console(log: Path) -> Console:
    is_terminal = sys.stdout.isatty()
    if is_terminal:
        reader, writer = pty.openpty()
        _look_like(sys.stdout.fileno(), writer)
    else:
        reader, writer = os.pipe()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = os.fdopen(descriptor, "ab", buffering=0)
    return Console(reader=reader, writer=writer, log=file, is_terminal=is_terminal)


def _look_like(terminal: int, other: int) -> None:
    """Same size; newlines are left to the real terminal."""
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, b"\0" * 8)
    fcntl.ioctl(other, termios.TIOCSWINSZ, size)
    settings = termios.tcgetattr(other)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(other, termios.TCSANOW, settings)
