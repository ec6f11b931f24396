"""Where the seconds from process start to the first step go."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from trainer.dist.heartbeat import Pulse, open_pulse
from trainer.records.pulse import Phase

# The pulse's phase after each lap: the worker need not say both.
_AFTER: dict[str, Phase] = {
    "python": "imports", "imports": "meet", "meet": "build", "build": "load", "load": "build",
}  # fmt: skip


class StartUp:
    """Laps since the process started. `seconds` goes into metrics.jsonl, `pulse` to the watcher."""

    def __init__(self, pulse: Pulse | None = None) -> None:
        self.pulse = pulse or open_pulse()
        self.process_started = _process_started()
        self.seconds: dict[str, float] = {}
        self._last = self.process_started

    def lap(self, phase: str) -> None:
        """Everything since the last lap was `phase`."""
        now = time.time()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now
        if phase in _AFTER:
            self.pulse.beat(_AFTER[phase], 0)

    def facts(self) -> dict[str, Any]:
        """For the line that opens the attempt. `process_started`: seconds since the epoch."""
        return {"process_started": round(self.process_started, 3), "startup_s": self.seconds}


def _process_started() -> float:
    """Seconds since the epoch; to 10 ms where /proc tells it, else now."""
    try:
        # Fields are counted after the command's closing bracket; it may hold spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22: start in clock ticks after boot
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - max(uptime - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
