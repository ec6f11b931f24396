"""The process beside a rank that uploads its checkpoints. Started by uploads.py; niced, no torch.

One order after the other over a socket, each answered. It ends with its rank: the kernel kills it,
or the closed socket ends it. Stop signals are not for it; the rank waits for it or does not.

    in    {"open": {...}} once, then {"do": "upload", "step": 100} or {"do": "withdraw"}
    out   {"note": "..."} as often as a request fails and is tried again;
          then {"value": {...}} or {"error", "kind"}
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.checkpoint.fence import Fence
from trainer.checkpoint.uploader import Uploader, UploadSettings
from trainer.checkpoint.wire import receive, said_of, send
from trainer.checkpoint.writer_process import SIGNALS
from trainer.errors import SaveFailed
from trainer.records.redact import hide_secrets
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage
from trainer.storage.patient import Patient
from trainer.storage.remote import PlaceMissing, is_full, open_store, trouble

_NICE = 10
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(argv)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given.parent:  # it ended before the line above
        return
    hide_secrets(os.environ)
    for number in SIGNALS:  # blocked by the rank until here
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.nice(_NICE)
    with socket.socket(fileno=given.socket) as link, contextlib.suppress(ConnectionError):
        serve(link)


def serve(link: socket.socket) -> None:
    """Until the other side closes."""
    uploader: list[Uploader] = []
    opening = receive(link) or {}
    while (order := receive(link)) is not None:

        def act(order: dict[str, Any] = order) -> dict[str, Any]:
            if not uploader:
                uploader.append(_made(opening["open"], link))
            return _done(uploader[0], order, url=opening["open"]["url"])

        send(link, said_of(act))


def _made(given: dict[str, Any], link: socket.socket) -> Uploader:
    def tell(error: OSError) -> None:
        send(link, {"note": trouble(given["url"], error)})

    run = RunFiles(Path(given["run"]))
    settings = UploadSettings(**given["settings"])
    fence = Fence(run.checkpoints, settings.attempt)
    store = Patient(open_store(given["url"], given["options"]), tell=tell)
    return Uploader(store, LocalStorage(), run, settings, may=fence.check)


def _done(uploader: Uploader, order: dict[str, Any], *, url: str) -> dict[str, Any]:
    if order["do"] == "withdraw":
        uploader.tell_withdrawn()
        return {}
    started = time.monotonic()
    try:
        found = uploader.upload(int(order["step"]))
    except OSError as e:
        if is_full(e) or isinstance(e, PlaceMissing):
            raise SaveFailed(trouble(url, e)) from e
        raise
    return asdict(found) | {"seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()
