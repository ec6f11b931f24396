"""Who am I, and how do the ranks agree. Tensors and JSON text travel; never pickled objects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from trainer.dist.meeting import meeting_place
from trainer.dist.place import Place as Place
from trainer.errors import Exit, LonghaulError, PeerFailed, WorldError
from trainer.faultpoints import faultpoint

T = TypeVar("T")
_MESSAGE_CHARACTERS = 1000  # of an error's text that travels to the other ranks


class World(Protocol):
    """Collective: every rank calls each of these, in the same order."""

    place: Place
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise float64 sum over ranks, in one collective."""

    def max(self, values: Sequence[float]) -> list[float]: ...

    def lead(self, act: Callable[[], T]) -> T:
        """Run `act` on rank 0 only; every rank gets its value as JSON gives it back, or an error.

        Raises: the error itself on rank 0, PeerFailed naming it on the others.
        """

    def each(self, act: Callable[[], T]) -> T:
        """Run `act` on every rank; if it fails anywhere it fails everywhere.

        Raises: the rank's own error where it failed, elsewhere PeerFailed naming the first rank.
        """

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks in rank order, on rank 0; an empty list elsewhere."""


class Alone:
    """A world of one process; no process group exists."""

    place = Place()

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def sum(self, values: Sequence[float]) -> list[float]:
        return [float(v) for v in values]

    def max(self, values: Sequence[float]) -> list[float]:
        return [float(v) for v in values]

    def lead(self, act: Callable[[], T]) -> T:
        value: T = json.loads(json.dumps(act()))  # so that one rank gets what many would get
        return value

    def each(self, act: Callable[[], T]) -> T:
        return act()

    def gather(self, text: str) -> list[str]:
        return [text]


class Group:
    """A world over the initialised default process group.

    Agreement runs on a gloo group of its own, so that it works while the device is busy and
    the small numbers of a step never wait behind a large transfer.
    """

    def __init__(self, place: Place, device: torch.device, control: dist.ProcessGroup) -> None:
        self.place = place
        self.device = device
        self._control = control

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def lead(self, act: Callable[[], T]) -> T:
        error: Exception | None = None
        answer = ""
        if self.place.rank == 0:
            encoded, error = _attempt(lambda: json.dumps(act()))
            answer = encoded if error is None and encoded is not None else _told(error)
        failed = bool(self._reduce([float(error is not None)], dist.ReduceOp.MAX)[0])
        answer = self._broadcast(answer)
        if error is not None:
            raise error
        if failed:
            raise _heard(answer, rank=0)
        value: T = json.loads(answer)
        return value

    def each(self, act: Callable[[], T]) -> T:
        value, error = _attempt(act)
        # One small reduction decides; the text of the first failure travels only if there is one.
        rank, size = self.place.rank, self.place.world_size
        first = -int(self._reduce([-rank if error else -size], dist.ReduceOp.MAX)[0])
        if first == size:
            return value  # type: ignore[return-value]
        said = self._broadcast(_told(error) if rank == first else "", source=first)
        if error is not None:
            raise error
        raise _heard(said, rank=first)

    def gather(self, text: str) -> list[str]:
        mine = _bytes_of(text)
        sizes = self._all_sizes(len(mine))
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(mine)] = mine
        lead = self.place.rank == 0
        rows = [torch.empty_like(padded) for _ in sizes] if lead else None
        with _lost_peers_named(self.place):
            dist.gather(padded, rows, dst=0, group=self._control)
        return [_text_of(row[:size]) for row, size in zip(rows or (), sizes, strict=False)]

    def _all_sizes(self, mine: int) -> list[int]:
        row = [0.0] * self.place.world_size
        row[self.place.rank] = float(mine)
        return [int(size) for size in self.sum(row)]

    def _reduce(self, values: Sequence[float], op: Any) -> list[float]:
        tensor = torch.tensor([float(v) for v in values], dtype=torch.float64)
        with _lost_peers_named(self.place):
            dist.all_reduce(tensor, op=op, group=self._control)
        result: list[float] = tensor.tolist()
        return result

    def _broadcast(self, text: str, *, source: int = 0) -> str:
        data = _bytes_of(text)
        size = torch.tensor([len(data)], dtype=torch.int64)
        with _lost_peers_named(self.place):
            dist.broadcast(size, src=source, group=self._control)
            if self.place.rank != source:
                data = torch.empty(int(size), dtype=torch.uint8)
            if int(size):
                dist.broadcast(data, src=source, group=self._control)
        return _text_of(data)


def meet(
    place: Place,
    *,
    device: torch.device,
    timeout_s: float = 600.0,
    init_method: str = "env://",
    token: str = "",
) -> World:
    """Join the other ranks (MASTER_ADDR and MASTER_PORT unless `init_method` says). Collective.

    `token`: names the attempt; ranks of another one and second ranks of a number are turned away.
    A world of one process makes no process group, except under `torchrun`-like launchers' eyes:
    DeepSpeed needs a group even for one rank, so the engine makes its own in that case.
    Raises: WorldError if the ranks do not meet in time, or this one has no place among them.
    """
    faultpoint("start.imported")
    if place.world_size == 1:
        return Alone(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    try:
        store = meeting_place(place, token, timeout) if init_method == "env://" else None
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=init_method if store is None else None,
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as e:
        raise WorldError(_why_not_met(place, e, timeout_s)) from e
    return Group(place, device, control)


def leave(world: World) -> None:
    """End this process's part in the world. Not collective: safe after an error elsewhere."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_echo(error: BaseException) -> bool:
    """Whether `error` only says that another rank failed; that rank knows the cause.

    Vendors' collectives fail with gloo's or NCCL's own RuntimeError when a peer is gone.
    """
    if isinstance(error, PeerFailed):
        return True
    lost = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in lost)


def _why_not_met(place: Place, error: Exception, timeout_s: float) -> str:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if isinstance(error, ValueError):
        return f"rank {place.rank} does not know where to meet the others: {error}"
    if "EADDRINUSE" in str(error) or "address already in use" in str(error):
        return (
            f"rank 0 cannot listen on {where}: the port is taken; "
            "resources.rendezvous_port=0 picks a free one"
        )
    return (
        f"rank {place.rank} of {place.world_size} did not meet the others at {where} "
        f"within {timeout_s:.0f} s: {error}"
    )


@contextmanager
def _lost_peers_named(place: Place) -> Iterator[None]:
    """Raises: PeerFailed where torch's collective fails: a rank is gone, or comes too late."""
    try:
        yield
    except RuntimeError as e:
        raise PeerFailed(f"rank {place.rank} lost the other ranks: {e}") from e


def _attempt(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as e:  # carried to the other ranks and raised there; never swallowed
        return None, e


def _told(error: Exception | None) -> str:
    """What the other ranks hear of `error`."""
    deliberate = isinstance(error, LonghaulError)
    said = (str(error) if deliberate else repr(error))[:_MESSAGE_CHARACTERS]
    code = error.exit_code if isinstance(error, LonghaulError) else Exit.FAILED
    return json.dumps({"said": said, "exit_code": int(code)})


def _heard(told: str, *, rank: int) -> PeerFailed:
    answer = json.loads(told)
    return PeerFailed(f"rank {rank} failed: {answer['said']}", Exit(answer["exit_code"]))


def _bytes_of(text: str) -> torch.Tensor:
    """uint8, empty for "" (frombuffer takes no empty buffer)."""
    data = bytearray(text.encode())
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _text_of(data: torch.Tensor) -> str:
    return data.numpy().tobytes().decode()
