"""What a host is, in its own words: sent there as text, so it imports nothing of ours.

One line of JSON in, one line of JSON out.

    {"folders": {FOLDER: NAME OF A FILE IN IT}, "wait_s": S, "port": P, "interface": I, "brief": B}
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    asked = json.loads(sys.argv[1])
    said: dict[str, Any] = {"time": time.time(), "address": address(asked["interface"])}
    if not asked["brief"]:
        said["python"] = sys.version.split()[0]
        said["versions"] = versions(asked["packages"])
        said["cores"] = len(os.sched_getaffinity(0))
        said["gpus"] = num_gpus()
        said["port_problem"] = port_problem(asked["port"], said["address"])
    said["folders"] = {f: folder(f, name, asked["wait_s"]) for f, name in asked["folders"].items()}
    print("longhaul " + json.dumps(said), flush=True)


def address(interface: str | None) -> str:
    """At which other nodes reach it: of the interface, or of the one that ssh came in by."""
    if interface is None:
        return [*os.environ.get("SSH_CONNECTION", "").split(), "", "", ""][2]
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24])
        except OSError:
            return ""


def versions(packages: list[str]) -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([one for one in Path("/dev").glob("nvidia*") if one.name[len("nvidia") :].isdigit()])


def port_problem(port: int, where: str) -> str:
    if not port:
        return ""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((where, port))
        except OSError as e:
            return e.strerror or str(e)
    return ""


def folder(path: str, name: str, wait_s: float) -> dict[str, object]:
    """Whether a file that was just written elsewhere is seen here, after how long."""
    begun = time.monotonic()
    while not (Path(path) / name).exists():
        if time.monotonic() - begun > wait_s:
            return {"seen": False, "exists": Path(path).is_dir(), "writable": False}
        with suppress(OSError):
            list(Path(path).iterdir())  # makes a network file system look again
        time.sleep(0.05)
    writable = os.access(path, os.W_OK)
    return {"seen": True, "exists": True, "writable": writable, "s": time.monotonic() - begun}


if __name__ == "__main__":
    main()
