"""All ranks do their part, rank 0 decides, all hear the same verdict. Nobody is left waiting."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from trainer.dist.world import World
from trainer.errors import CheckpointMismatch, DamagedCheckpoint, LonghaulError, Superseded

_TEXT = 400  # characters of one rank's error that travel


class Disagreed(Exception):
    """Some rank could not do its part. Raised on all ranks with the same text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    @property
    def is_damage(self) -> bool:
        return self.kind == DamagedCheckpoint.__name__

    @property
    def is_mismatch(self) -> bool:
        return self.kind == CheckpointMismatch.__name__


def agree(world: World, part: Callable[[], Any], decide: Callable[[Sequence[Any]], Any]) -> Any:
    """Every rank runs `part`; rank 0 then runs `decide` on their values in rank order.

    Values are JSON. If any part, or the decision, raises, every rank raises. Collective.
    Raises: Disagreed; Superseded if this attempt may no longer write, which is no failed save.
    """
    said = _attempt(part)
    texts = world.gather(json.dumps(said.answer))
    return _value(world.lead(lambda: _decided(texts, decide)), said.error)


def hear(world: World, decide: Callable[[], Any]) -> Any:
    """What rank 0 decides alone, which may fail: `agree` where nobody else has a part. Collective.

    Raises: as `agree`.
    """
    return _value(world.lead(lambda: _attempt(decide).answer), None)


def nowhere(world: World, look: Callable[[], bool]) -> bool:
    """Whether `look` says no on every rank and fails on none. One sum; collective.

    Most questions of a save have this answer; who asked tells the others apart with `agree`.
    """
    said = _attempt(look).answer
    return world.sum([float(bool(said.get("value", True)))])[0] == 0.0


def _value(verdict: dict[str, Any], own: Exception | None) -> Any:
    if verdict.get("kind") == Superseded.__name__:
        raise Superseded(verdict["error"]) from own
    if "error" in verdict:
        raise Disagreed(verdict["kind"], verdict["error"]) from own
    return verdict["value"]


class _Said:
    """What one rank has to say: a value, or an error that it keeps for its own traceback."""

    def __init__(self, answer: dict[str, Any], error: Exception | None = None) -> None:
        self.answer = answer
        self.error = error


def _attempt(act: Callable[[], Any]) -> _Said:
    try:
        return _Said({"value": act()})
    except Exception as e:  # told to every rank and raised there; never swallowed
        text = str(e) if isinstance(e, LonghaulError) else f"{type(e).__name__}: {e}"
        return _Said({"error": text[:_TEXT], "kind": type(e).__name__}, e)


def _decided(texts: Sequence[str], decide: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
    answers = [json.loads(text) for text in texts]
    failed = [(r, a) for r, a in enumerate(answers) if "error" in a]
    if not failed:
        return _attempt(lambda: decide([a["value"] for a in answers])).answer
    # A failure that says nothing about the files comes first: nothing may be condemned for it.
    failed.sort(key=lambda item: item[1]["kind"] == DamagedCheckpoint.__name__)
    rank, first = failed[0]
    others = f" (and {len(failed) - 1} more ranks)" if len(failed) > 1 else ""
    return {"error": f"rank {rank}: {first['error']}{others}", "kind": first["kind"]}
