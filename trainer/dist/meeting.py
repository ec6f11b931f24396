"""Where the ranks of one attempt find each other, and who is not let in."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from trainer.dist.place import Place
from trainer.errors import NotAdmitted

LISTENER = "LONGHAUL_RENDEZVOUS_FD"  # rank 0's: a socket that listens at MASTER_PORT already
_TOKEN = "longhaul/attempt"


def meeting_place(
    place: Place, token: str, timeout: timedelta, env: Mapping[str, str] = os.environ
) -> Store:
    """The store at MASTER_ADDR:MASTER_PORT, where this rank has registered; rank 0 serves it.

    `token`: of the attempt. A process that slept through the end of its attempt may wake up and
    find the next one at the same port.
    Raises: NotAdmitted if it is another attempt's, or this rank is there already; ValueError if the
    address is not known; RuntimeError if there is no store.
    """
    try:
        host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    except KeyError as e:
        raise ValueError(f"environment variable {e.args[0]} expected, but not set") from None
    # torchrun serves the store itself, for all its restarts.
    serves = place.rank == 0 and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    held = env.get(LISTENER) if serves else None
    store = TCPStore(
        host,
        port,
        place.world_size,
        serves,
        timeout,
        wait_for_workers=False,
        master_listen_fd=int(held) if held else None,
    )
    if place.rank == 0:
        store.set(_TOKEN, token)
    said = store.get(_TOKEN).decode()
    if said != token:
        raise NotAdmitted(
            f"rank {place.rank} came to {host}:{port} for {token or 'its attempt'}, but there "
            f"{said or 'another attempt'} meets; it has no place there"
        )
    restart = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    meeting = PrefixStore(f"longhaul/{token}/{restart}", store)
    if meeting.add(f"rank-{place.rank}", 1) > 1:
        raise NotAdmitted(
            f"two processes want to be rank {place.rank} of {place.world_size} ({token}); the "
            "second is turned away"
        )
    return meeting


def own_address(env: Mapping[str, str] = os.environ) -> str:
    """This machine's address on the way to where the ranks meet; loopback if they meet there.

    Raises: OSError if that place cannot be reached.
    """
    meeting = env.get("MASTER_ADDR", "127.0.0.1")
    family, _, _, _, address = socket.getaddrinfo(meeting, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(address)  # sends nothing; the kernel says which address it would send from
        return str(way.getsockname()[0])
