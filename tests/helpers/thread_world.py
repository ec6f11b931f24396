"""A world whose ranks are threads of the test's process: agreement without processes or sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from trainer.dist.world import Place
from trainer.errors import WorldError

T = TypeVar("T")
_TIMEOUT_S = 100.0  # a rank that fails alone breaks the barrier for the others, as a dead peer does


class _Meeting:
    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=_TIMEOUT_S)
        self.slots: list[Any] = [None] * world_size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        seen = list(self.slots)
        self.barrier.wait()
        return seen


class ThreadWorld:
    """As trainer.dist.world.Group behaves, values and errors travelling as JSON text."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int, meeting: _Meeting) -> None:
        self.place = Place(rank, world_size, rank)
        self._meeting = meeting

    def sum(self, values: Sequence[float]) -> list[float]:
        rows = self._meeting.exchange(self.place.rank, list(values))
        assert len({len(row) for row in rows}) == 1, "the ranks call different collectives"
        return [float(sum(column)) for column in zip(*rows, strict=True)]

    def max(self, values: Sequence[float]) -> list[float]:
        rows = self._meeting.exchange(self.place.rank, list(values))
        return [float(max(column)) for column in zip(*rows, strict=True)]

    def lead(self, act: Callable[[], T]) -> T:
        value, error = _attempt(act) if self.place.rank == 0 else (None, None)
        told = json.dumps({"value": value, "error": error and str(error)})
        heard = json.loads(self._meeting.exchange(self.place.rank, told)[0])
        if error is not None:
            raise error
        if heard["error"] is not None:
            raise WorldError(f"rank 0 failed: {heard['error']}")
        result: T = value if self.place.rank == 0 else heard["value"]  # type: ignore[assignment]
        return result

    def each(self, act: Callable[[], T]) -> T:
        value, error = _attempt(act)
        errors = self._meeting.exchange(self.place.rank, error and repr(error))
        if error is not None:
            raise error
        failed = [rank for rank, text in enumerate(errors) if text is not None]
        if failed:
            raise WorldError(f"rank {failed[0]} failed: {errors[failed[0]]}")
        return value  # type: ignore[return-value]

    def gather(self, text: str) -> list[str]:
        seen = self._meeting.exchange(self.place.rank, text)
        return seen if self.place.rank == 0 else []


def run_threads(world_size: int, fn: Callable[[ThreadWorld], T]) -> list[T | BaseException]:
    """`fn(world)` on every rank of a new world; what each returned or raised, in rank order.

    The others of a rank that raised break off in their next collective, as from a dead peer.
    """
    meeting = _Meeting(world_size)

    def be_rank(rank: int) -> T | BaseException:
        try:
            return fn(ThreadWorld(rank, world_size, meeting))
        except BaseException as e:
            meeting.barrier.abort()
            return e

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(be_rank, range(world_size)))


def _attempt(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as e:
        return None, e
