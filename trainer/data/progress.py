"""Progress of a preparation: one rewritten line on a terminal, a plain line now and then else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from trainer.records.sizes import size_text

_WIDTH = 28
_TERMINAL_EVERY_S = 0.2
_PLAIN_EVERY_S = 10.0


class Progress:
    """Bytes of text done, out of `total_bytes` (0: unknown), `already` of them before a kill."""

    def __init__(
        self, label: str, *, total_bytes: int, already: int = 0, stream: TextIO | None = None
    ) -> None:
        self._label = label
        self._total = total_bytes
        self._stream = stream if stream is not None else sys.stderr
        self._is_terminal = self._stream.isatty()
        self._every_s = _TERMINAL_EVERY_S if self._is_terminal else _PLAIN_EVERY_S
        self._start = self._shown = time.monotonic()
        self._already = already

    def show(self, done_bytes: int, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < self._every_s:
            return
        self._shown = now
        line = self.line(done_bytes, elapsed_s=now - self._start, last=last)
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if last else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def line(self, done_bytes: int, *, elapsed_s: float, last: bool = False) -> str:
        rate = (done_bytes - self._already) / max(elapsed_s, 1e-9)
        text = f"{self._label}  {size_text(done_bytes)}  {size_text(rate)}/s"
        if last:  # in bytes of text: files that hold more than text (JSON, gzip) count otherwise
            return f"{text}  done in {_clock(elapsed_s)}"
        if not self._total:
            return text
        share = min(done_bytes / self._total, 1.0)
        filled = round(share * _WIDTH)
        bar = "#" * filled + "." * (_WIDTH - filled)
        left_s = max(self._total - done_bytes, 0) / max(rate, 1.0)
        return f"{text}  [{bar}] {share:4.0%}  {_clock(left_s)} left"


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
