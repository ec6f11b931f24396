"""Messages between a rank and its writer process: JSON with its length before it. Torch-free."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from trainer.errors import LonghaulError, SaveFailed, Superseded

_LENGTH = 4  # bytes


def send(link: socket.socket, message: dict[str, Any]) -> None:
    """Raises: OSError (also TimeoutError) if the other side does not take it."""
    content = json.dumps(message, separators=(",", ":")).encode()
    link.sendall(len(content).to_bytes(_LENGTH, "little") + content)


def receive(link: socket.socket) -> dict[str, Any] | None:
    """Wait for the next message; None once the other side is gone."""
    length = _exactly(link, _LENGTH)
    content = _exactly(link, int.from_bytes(length, "little")) if length else b""
    if not content:
        return None
    message: dict[str, Any] = json.loads(content)
    return message


def said_of(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` returned, or how it failed, as it travels."""
    try:
        return {"value": act()}
    except Exception as e:  # raised again in the rank, by `value_of`
        text = str(e) if isinstance(e, LonghaulError) else f"{type(e).__name__}: {e}"
        return {"error": text, "kind": type(e).__name__}


def value_of(said: dict[str, Any]) -> dict[str, Any]:
    """Raises: Superseded if that is what was said; SaveFailed for any other failure."""
    if "error" in said:
        kind = Superseded if said.get("kind") == Superseded.__name__ else SaveFailed
        raise kind(str(said["error"]))
    value: dict[str, Any] = said["value"]
    return value


def _exactly(link: socket.socket, length: int) -> bytes:
    """`length` bytes, or none at all if the other side is gone before the last one."""
    parts: list[bytes] = []
    left = length
    while left:
        part = link.recv(min(left, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
