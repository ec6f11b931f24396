"""Weights & Biases; the only importer of wandb. Meant to run under observers/aside.py.

Online if it can be, else offline (`wandb sync` later), else nothing: a tracker never ends a run.
The id is the run's for life, so every attempt continues one W&B run; the step is an ordinary
metric, because W&B drops points whose own step is not above the last (a resumed run repeats some).
Keys are W&B's business: they come from its own login and are never read or written here. What it
is told passes our redactor, for it writes files and sends them elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import wandb

from trainer.records.redact import Redactor
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport

_log = logging.getLogger(__name__)
_INIT_S = 10.0  # wandb's own default of 90 s is long for a server that is not there
_LOCAL_INIT_S = 90.0  # nobody is asked but a process of this machine, which may be busy
_FINISH_S = 20.0
_FLUSH_S = 1  # of the local file; wandb's 15 s are lost when the process is killed


class Wandb:
    """Raises: whatever wandb.init raises, if not even an offline run can be made."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: Literal["offline", "online"],
        run_id: str,
        name: str,
        project: str,
        entity: str | None,
        tags: Sequence[str],
        attempt: int,
        config: Mapping[str, Any],
        redactor: Redactor,
        group: str | None = None,
        init_s: float = _INIT_S,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt = attempt
        self._redactor = redactor
        told = {
            "id": run_id,
            "name": name,
            "project": project,
            "entity": entity,
            "tags": list(tags),
            "group": group,
            "config": dict(config),
        }
        # wandb adds the folder "wandb" itself.
        place = {"dir": str(folder.parent), "resume": "allow"}
        self._run = _begin(mode, redactor.values(told) | place, init_s=init_s)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def on_step(self, report: StepReport) -> None:
        values = asdict(report)
        del values["step"]
        self._record(report.step, "train", values)

    def on_eval(self, report: EvalReport) -> None:
        self._record(report.step, "eval", report.values)

    def on_save(self, report: SaveReport) -> None:
        values = {"stall_s": report.stall_s, "bytes": report.bytes, "succeeded": report.succeeded}
        self._record(report.step, "save", values)

    def on_upload(self, report: UploadReport) -> None:
        values = {"seconds": report.seconds, "bytes": report.bytes, "succeeded": report.succeeded}
        self._record(report.step, "upload", values)

    def on_guard(self, report: GuardReport) -> None:
        values = {"action": report.action, "said": report.said, "skipped": report.skipped}
        self._record(report.step, "guard", values)

    def close(self) -> None:
        self._run.finish()
        if self._run.offline:
            # wandb 0.31: its service writes on when finish() has returned, and what a rank leaves
            # behind is ended with its attempt.
            wandb.teardown()

    def _record(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._run.log(self._redactor.values({"step": step, "attempt": self._attempt} | named))


def _begin(mode: Literal["offline", "online"], arguments: dict[str, Any], *, init_s: float) -> Any:
    if mode == "online":
        try:
            return wandb.init(mode="online", settings=_settings(init_s), **arguments)
        except Exception as e:  # no network, no login, a server that does not answer
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            _log.warning("W&B cannot be reached (%s); logging offline into the run folder", reason)
            # wandb 0.31: its service keeps the id "in use" after a failed init.
            wandb.teardown()
    return wandb.init(mode="offline", settings=_settings(_LOCAL_INIT_S), **arguments)


def _settings(init_s: float) -> Any:
    return wandb.Settings(
        init_timeout=init_s,
        finish_timeout=_FINISH_S,
        console="off",  # the rank's own log has it
        silent=True,
        disable_git=True,
        disable_code=True,
        x_transaction_log_flush_interval=_FLUSH_S,
    )
