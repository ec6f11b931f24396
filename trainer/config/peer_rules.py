"""Where states in memory may lie, and when keeping them is of no use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.config.schema import Config
from trainer.errors import Problem

_EVERY = "checkpoint.peer.every"
_FOLDER = "checkpoint.peer.folder"


def peer_problems(config: Config) -> Iterator[Problem]:
    section, saves = config.checkpoint.peer, config.steps.save_every
    if not section.every:
        return
    if not Path(section.folder).is_absolute():
        what = f"{section.folder!r} is another place on every node; name one from the root"
        yield Problem(_FOLDER, what, f"{_FOLDER}=/dev/shm")
    if section.every != "auto" and saves != "auto" and 0 < saves <= section.every:
        what = (
            f"a state each {section.every} steps is never newer than the disk's, which comes each "
            f"{saves} steps (steps.save_every)"
        )
        yield Problem(_EVERY, what, f"{_EVERY}=auto")
