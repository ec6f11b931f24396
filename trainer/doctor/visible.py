"""How long until another node sees what rank 0 wrote into the shared folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trainer.dist.world import World
from trainer.records.json_file import write_json

_PATIENCE_S = 20.0  # NFS keeps attributes for 3 to 60 s; what takes longer is not shared at all
_POLL_S = 0.005


def measure_visible(
    world: World, folder: Path, *, looks: bool, patience_s: float = _PATIENCE_S
) -> dict[str, float | None]:
    """Seconds from rank 0's write until this rank sees a new name, and new content; None: never.

    Collective. `looks`: whether this rank is one of those that watch. Everybody looks for the name
    before it is there: a client may remember that there was nothing.
    """
    path = folder / "visible.json"
    waits_s = patience_s if looks else 0.0
    name = _seen(world, path, lambda: path.exists(), waits_s=waits_s, number=1)
    content = _seen(world, path, lambda: _content_is_new(path), waits_s=waits_s, number=2)
    return {"name_s": name, "content_s": content}


def _seen(
    world: World, path: Path, is_there: Callable[[], bool], *, waits_s: float, number: int
) -> float | None:
    is_there()
    world.max([0.0])
    started = time.monotonic()  # the write follows at once, on rank 0
    if world.place.rank == 0:
        write_json(path, {"written": number})
    found = _first_time(is_there, waits_s)
    world.max([0.0])
    return None if found is None else round(found - started, 4)


def _first_time(is_there: Callable[[], bool], waits_s: float) -> float | None:
    """CLOCK_MONOTONIC; None: not within `waits_s`."""
    deadline = time.monotonic() + waits_s
    while time.monotonic() < deadline:
        if is_there():
            return time.monotonic()
        time.sleep(_POLL_S)
    return None


def _content_is_new(path: Path) -> bool:
    try:
        return '"written": 2' in path.read_text(encoding="utf-8")
    except OSError:
        return False
