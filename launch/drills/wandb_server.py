"""Servers that a W&B client may meet: D25. None is a W&B server; the good one only says yes."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Mode = Literal["refused", "silent", "errors", "slow", "no key", "dies"]
MODES: tuple[Mode, ...] = ("refused", "silent", "errors", "slow", "no key", "dies")
_SLOW_S = 10.0
_DIES_AFTER = 3  # answers


@contextlib.contextmanager
def server(mode: Mode) -> Iterator[str]:
    """Its URL while the block runs."""
    if mode in ("refused", "silent"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if mode == "silent":
                listener.listen(64)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        return
    served = _Server(("127.0.0.1", 0), _Answers)
    served.mode = mode
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}"
    finally:
        served.shutdown()
        served.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    mode: Mode = "errors"
    answered = 0


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    do_PUT = do_POST

    def _answer(self) -> None:
        self.server.answered += 1
        mode = self.server.mode
        if mode == "slow":
            time.sleep(_SLOW_S)
        if mode == "dies" and self.server.answered > _DIES_AFTER:
            self.connection.close()
            return
        code = {"errors": 500, "no key": 401}.get(mode, 200)
        body = json.dumps({"data": None, "errors": [{"message": "no"}]}).encode()
        with contextlib.suppress(OSError):  # the client has given up
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args
