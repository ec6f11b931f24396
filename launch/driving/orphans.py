"""Agents whose driver is gone: their ranks save and stop, and that is worth waiting for."""

from __future__ import annotations

import sys
import time

from launch.node.ranks_spec import RANKS_FILE, read_spec
from launch.run.ended import ended_of
from launch.run.lease import beat_of, read_beat
from launch.run.run_folder import attempts
from trainer.records.run_files import RunFiles

_MARGIN_S = 15.0  # an agent kills what does not save in time, then writes its files
_STILL_S = 5.0  # without a beat: nothing more is to be expected
_LOOK_S = 0.2


def wait_for_orphans(run: RunFiles) -> None:
    """Until the agents of the newest attempt have had their last word, if its driver is gone."""
    known = attempts(run)
    if not known or known[-1].ended.exists():
        return
    files = known[-1]
    try:
        spec = read_spec(files.root / RANKS_FILE)
    except (OSError, ValueError, TypeError):
        return
    begun = time.monotonic()
    until = begun + spec.lease_s + spec.grace_s + _MARGIN_S
    beats: dict[int, tuple[bytes, float]] = {}
    has_said = False
    while time.monotonic() < until:
        now = time.monotonic()
        living = []
        for node in range(spec.nodes):
            beat = read_beat(files, beat_of(node))
            if beat is None or ended_of(files, node).exists():
                continue
            before, since = beats.setdefault(node, (beat, now))
            if before != beat:
                beats[node] = (beat, now)
            elif now - since > _STILL_S:
                continue
            living.append(node)
        if not living:
            return
        if not has_said and now - begun > 1.0:
            has_said = True
            print("the run's agents lost their driver; waiting until they have saved", flush=True)
        time.sleep(_LOOK_S)
    print("agents of the last attempt still run; they lose their right to write", file=sys.stderr)
