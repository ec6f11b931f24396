"""Ray's Jobs API, over HTTP: a driver on the head node, handed over from anywhere.

What a job gets in its environment everybody can read who may look at the cluster, so nothing secret
is put there; of the token only the request's header knows.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.raying.cluster import environment_for_ray
from launch.run.job_record import Job, JobState
from trainer.config.sections.ray import RayLaunch
from trainer.errors import ConfigError, Problem, Refused
from trainer.records.redact import is_secret_variable

_REQUEST_S = 20.0
_TURN_S = 0.5
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.ENDED,
    "FAILED": JobState.ENDED,
    "STOPPED": JobState.ENDED,
}


def dashboard_of(launch: RayLaunch) -> str:
    """Raises: ConfigError if nothing says where jobs are submitted."""
    found = launch.dashboard or os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if not found:
        what = "launch.submit=job, but nothing says where jobs are submitted"
        fix = "launch.dashboard=http://HEAD:8265, or RAY_API_SERVER_ADDRESS"
        raise ConfigError([Problem("launch.dashboard", what, fix)])
    return found.rstrip("/")


@dataclass(frozen=True)
class JobsApi:
    """`token` None: the cluster wants none."""

    url: str
    token: str | None

    @classmethod
    def of(cls, launch: RayLaunch) -> JobsApi:
        return cls(dashboard_of(launch), _token(launch))

    def submit(self, name: str, command: str, *, env: Mapping[str, str]) -> None:
        """One of that name is taken once only. Raises: Refused."""
        body = {
            "entrypoint": command,
            "submission_id": name,
            "runtime_env": {"env_vars": dict(env)},
            "entrypoint_num_cpus": 0,
        }
        self._ask("POST", "/api/jobs/", body)

    def states(self) -> dict[str, Job]:
        """By submission id. Raises: Refused."""
        found = {}
        for each in self._ask("GET", "/api/jobs/"):
            state = _STATES.get(each.get("status", ""), JobState.UNKNOWN)
            why = f"Ray job {each['submission_id']}: {str(each.get('status', '?')).lower()}"
            found[each["submission_id"]] = Job(state, why)
        return found

    def stop(self, name: str) -> None:
        """Raises: Refused."""
        self._ask("POST", f"/api/jobs/{name}/stop")

    def words(self, name: str) -> str:
        """What it has printed."""
        return str(self._ask("GET", f"/api/jobs/{name}/logs")["logs"])

    def result(self, name: str, *, patience_s: float) -> str:
        """What it printed once it is over. Raises: Refused if it is not in time."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            status = self._ask("GET", f"/api/jobs/{name}")
            if _STATES.get(status["status"]) is JobState.ENDED:
                return self.words(name) or str(status.get("message", ""))
            time.sleep(_TURN_S)
        self.stop(name)
        raise Refused(f"{self.url}: job {name} did not end in {patience_s:.0f} s")

    def delete(self, name: str) -> None:
        self._ask("DELETE", f"/api/jobs/{name}")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Raises: Refused."""
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as e:
            raise Refused(self._why(e.code, e.read().decode(errors="replace"))) from None
        except (OSError, ValueError) as e:
            why = getattr(e, "reason", None) or e
            raise Refused(
                f"launch.dashboard={self.url}: no Ray dashboard answers there ({why})\n     try: "
                "the address of the head's dashboard; it listens on loopback unless it is told "
                "--dashboard-host"
            ) from None

    def _why(self, code: int, text: str) -> str:
        if code in (401, 403):
            return (
                f"the Ray cluster at {self.url} does not take the token\n     try: the token that "
                "it was started with, in RAY_AUTH_TOKEN or launch.token_file; launch.auth=token"
            )
        return f"the Ray dashboard at {self.url} answered {code}: {_last_words(text)[:300]}"


def _last_words(text: str) -> str:
    """Of a trace, what went wrong; a trace that is quoted by another ends with a lonely dot."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalpha() for c in line)]
    return lines[-1] if lines else "it said nothing"


def _token(launch: RayLaunch) -> str | None:
    """As Ray finds it. Raises: Refused if `launch.token_file` is not there."""
    if launch.auth != "token":
        return None
    env = environment_for_ray(launch, os.environ)
    if given := env.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return path.read_text(encoding="utf-8").strip()


def job_command(argv: Sequence[str], launch: RayLaunch, *, workdir: str) -> str:
    """One line for the shell of the head node; `argv[0]` stands for the interpreter there."""
    words = [launch.python or sys.executable, *argv[1:]]
    return f"cd {shlex.quote(launch.workdir or workdir)} && exec {shlex.join(words)}"


def open_environment(env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(what a job may be given, names that it may not)."""
    secret = sorted(name for name in env if is_secret_variable(name))
    return {name: value for name, value in env.items() if name not in secret}, secret
