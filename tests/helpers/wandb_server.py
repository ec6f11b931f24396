"""The part of W&B's server that its client needs to make runs and to sync them, on loopback.

It answers queries by their names and keeps what it is told. It shows what the client sends, not
what the real server would do with it.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ToldRun:
    """`history`: the n-th line of the run -> its values."""

    entity: str
    project: str
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class WandbServer:
    url: str = ""
    runs: dict[str, ToldRun] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "UpsertBucket":
            run_id = given.get("name") or given.get("id")
            is_new = run_id not in self.runs
            made = ToldRun(given.get("entity") or "me", given.get("project") or "uncategorized")
            run = self.runs.setdefault(str(run_id), made)
            run.config |= json.loads(given.get("config") or "{}")
            return {"upsertBucket": {"bucket": self._bucket(str(run_id)), "inserted": is_new}}
        if name == "RunResumeStatus":
            known = given["name"] in self.runs
            owner = {"id": "e", "name": given.get("entity") or "me"}
            model = {"id": "p", "name": given.get("project"), "entity": owner}
            return {"model": model | {"bucket": self._resumed(given["name"]) if known else None}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/storage/{f}"} for f in given["files"]]
            made_files = {"runID": "r", "uploadHeaders": [], "files": files}
            return {"createRunFiles": made_files}
        if name == "Viewer":
            teams: dict[str, Any] = {"edges": [{"node": {"name": "me"}}]}
            who = {"id": "v", "entity": "me", "username": "me", "email": "me@x", "admin": False}
            return {"viewer": who | {"flags": "{}", "teams": teams, "capabilities": []}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def stream(self, run_id: str, told: dict[str, Any]) -> None:
        lines = (told.get("files") or {}).get("wandb-history.jsonl")
        if lines is not None:
            for number, line in enumerate(lines["content"], lines["offset"]):
                self.runs[run_id].history[number] = json.loads(line)

    def _bucket(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}}
        counts = {"historyLineCount": len(run.history)}
        names = {"id": run_id, "name": run_id, "displayName": run_id, "description": None}
        return names | counts | {"config": json.dumps(run.config), "project": project}

    def _resumed(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        last = run.history.get(max(run.history, default=-1))
        return self._bucket(run_id) | {
            "summaryMetrics": json.dumps(last or {}),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if last else []),
            "eventsTail": "[]",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
            "stopped": False,
        }


class _Handler(BaseHTTPRequestHandler):
    told: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({})

    def do_PUT(self) -> None:
        self._body()
        self._say({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            found = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
            with self.told.lock:
                name = found[1] if found else ""
                self._say({"data": self.told.answer(name, asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            with self.told.lock:
                self.told.stream(self.path.split("/")[-2], json.loads(body))
            self._say({"exitcode": None, "limits": {}})
        else:
            self._say({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        zipped = self.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(body) if zipped else body

    def _say(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    told = WandbServer()
    handler = type("Handler", (_Handler,), {"told": told})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
