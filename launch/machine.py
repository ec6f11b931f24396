"""What this machine can give to ranks: ports and devices. No vendor library is asked."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Literal

from trainer.errors import Refused

LOOPBACK = "127.0.0.1"


def free_port(wanted: int, *, host: str = LOOPBACK) -> int:
    """`wanted` if it is free, or any free one for 0.

    Raises: Refused if `wanted` is taken or not ours to take.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as e:
            raise _port_refused(wanted, host, e) from e
        return int(probe.getsockname()[1])


def rendezvous_socket(wanted: int, *, host: str = LOOPBACK) -> socket.socket:
    """Listening at `wanted`, or at a free port for 0: held, so that nobody takes it meanwhile.

    Raises: Refused if `wanted` is taken or not ours to take.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, wanted))
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise _port_refused(wanted, host, e) from e
    return listener


def _port_refused(wanted: int, host: str, error: OSError) -> Refused:
    why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return Refused(
        f"resources.rendezvous_port: port {wanted} on {host} {why}\n"
        "     try: resources.rendezvous_port=0"
    )


def interface_towards(host: str, port: int) -> str:
    """Name of the network interface that packets to `host` leave by; "" if that is not known.

    Vendors would take the address that the machine's own name stands for, which Debian maps to
    loopback.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))  # sends nothing
            address = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if address_of_interface(name, probe) == address:
                    return name
        except OSError:
            return ""
    return ""


_SIOCGIFADDR = 0x8915


def address_of_interface(name: str, probe: socket.socket) -> str:
    """ "" if it has none."""
    with suppress(OSError):
        request = struct.pack("256s", name.encode()[:15])
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        return socket.inet_ntoa(answer[20:24])
    return ""


def num_gpus() -> int:
    """CUDA devices the ranks would see; 0 without an NVIDIA driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([one for one in Path("/dev").glob("nvidia*") if one.name[6:].isdigit()])


def check_devices(device: str, *, ranks_per_node: int) -> None:
    """Raises: Refused if there are more ranks than CUDA devices."""
    if device != "cuda":
        return
    found = num_gpus()
    if ranks_per_node > found:
        fix = f"resources.ranks_per_node={found}" if found else "resources.device=cpu"
        noun = "CUDA device" if found == 1 else "CUDA devices"
        raise Refused(
            f"resources.ranks_per_node: {ranks_per_node} ranks a node, but this machine has "
            f"{found} {noun}\n     try: {fix}"
        )


def device_for(wanted: str) -> Literal["cpu", "cuda"]:
    """What `resources.device` means here: auto is cuda where this machine has it."""
    if wanted == "auto":
        return "cuda" if num_gpus() else "cpu"
    return "cuda" if wanted == "cuda" else "cpu"


def num_cores() -> int:
    """Cores this process may use; a container or a job may have fewer than the machine."""
    return len(os.sched_getaffinity(0))
