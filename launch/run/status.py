"""How a run stands, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.driving.waiting import waiting_for
from launch.outcome import decide, newest_checkpoint, observe
from launch.run.attempts import close_attempt, concluded, read_lines_of
from launch.run.budgets import NOT_TAKEN
from launch.run.job_record import Job, JobState
from launch.run.run_folder import attempts, is_being_stopped, running
from trainer.errors import Exit
from trainer.records.account import account
from trainer.records.json_file import read_json
from trainer.records.ledger import read_ledger, slow_ranks
from trainer.records.run_files import RunFiles

_NOTED = ("pending", "running", "stopping")  # states in which a scheduler has the last word


@dataclass(frozen=True)
class RunStatus:
    """`state`: new, pending, running, stopping (it was asked to, and is not over), finished,
    stopped, failed (start again), gave up (look first); unknown: it was handed over, and nobody can
    say what became of it. `note`: what a scheduler adds to it, as in running (suspended).
    """

    run: str
    state: str
    step: int
    total: int | None
    loss: float | None
    tokens_per_second: float | None
    checkpoint: int
    attempt: int
    why: str
    folder: str
    left_s: float | None = None  # at the rate of the last step shown; of a run that runs
    goodput: float | None = None  # the part of the wall time that made new steps, where asked for
    note: str = ""

    @property
    def state_text(self) -> str:
        """For people."""
        return f"{self.state} ({self.note})" if self.note else self.state


def status_of(run: RunFiles, job: Job | None = None, *, with_goodput: bool = False) -> RunStatus:
    """`job`: what a scheduler says of the newest attempt, if that was handed over to one.

    `with_goodput`: reads the whole ledger, which grows for as long as a run lasts.
    """
    known = attempts(run)
    metrics = last_metrics(run.metrics)
    state, why = _state(run, job)
    plan = newest_plan(run)
    note = job.note if job is not None and state in _NOTED else ""
    return RunStatus(
        run=run.name,
        state=state,
        step=int(metrics.get("step", 0)),
        total=_total(run, plan),
        loss=metrics.get("loss"),
        tokens_per_second=metrics.get("tokens_per_second"),
        checkpoint=newest_checkpoint(run),
        attempt=known[-1].number if known else 0,
        why=why,
        folder=str(run.root),
        left_s=_left_s(plan, metrics) if state == "running" and not note else None,
        goodput=round(account(run.root).goodput, 4) if with_goodput else None,
        note=note,
    )


def _left_s(plan: dict[str, Any], metrics: dict[str, Any]) -> float | None:
    try:
        steps = int(plan["config"]["steps"]["total"]) - int(metrics["step"])
        return steps * int(plan["tokens_per_step"]) / float(metrics["tokens_per_second"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _state(run: RunFiles, job: Job | None) -> tuple[str, str]:
    known = attempts(run)
    if not known:
        return "new", ""
    newest = known[-1].number
    if job is not None and job.state is JobState.PENDING:
        return "pending", job.why
    if job is not None and job.state is JobState.RUNNING:
        if is_being_stopped(run):  # a scheduler hears late that a run has left
            return "stopping", job.why
        return "running", job.why + _slow(run)
    if job is not None and job.state is JobState.UNKNOWN and concluded(run, newest) is None:
        error = observe(run, newest).error
        if error is not None and error.kind == NOT_TAKEN:
            return "unknown", f"{error.message}; {job.why}"
        return "unknown", job.why
    if job is not None and job.verdict and observe(run, newest).done is None:
        return job.verdict, job.why
    mark = running(run) if job is None else None
    if mark is not None:
        waits = waiting_for(known[-1])
        about = f"; {waits}" if waits else _slow(run)
        state = "stopping" if is_being_stopped(run) else "running"
        return state, f"process {mark.pid} on {mark.host}{about}"
    outcome = concluded(run, newest) or decide(observe(run, newest), earlier=_earlier(run, newest))
    words = {
        Exit.DONE: "finished",
        Exit.SAVED: "stopped",
        Exit.INTERRUPTED: "stopped",
        Exit.FAILED: "failed",
    }
    over = f" ({job.why})" if job is not None and outcome.exit_code != Exit.DONE else ""
    return words.get(outcome.exit_code, "gave up"), outcome.why + over


def _slow(run: RunFiles) -> str:
    try:  # most ledgers name nobody, and grow for months: they are not parsed
        if b'"straggler"' not in run.ledger(0).read_bytes():
            return ""
    except OSError:
        return ""
    slow = slow_ranks(read_ledger(run.ledger(0))).items()
    notes = [f"; rank {rank} is {ratio:.1f} x slower than the others" for rank, ratio in slow]
    return "".join(notes)


def close_old_attempts(run: RunFiles) -> None:
    """Give every attempt that died without its agent's last word its line. Nothing may run."""
    for files in attempts(run):
        outcome = decide(observe(run, files.number), earlier=_earlier(run, files.number))
        close_attempt(run, files.number, outcome)


def last_metrics(path: Path) -> dict[str, Any]:
    """The newest line of a step; empty if there is none. Reads the end of the file only."""
    import json

    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 256 * 1024))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # cut off at the start, or torn at the end
        if isinstance(value, dict) and value.get("kind", "step") == "step" and "loss" in value:
            return value
    return {}


def finished_step(run: RunFiles) -> int:
    """The furthest step at which an attempt said done; 0: none did."""
    seen = (observe(run, files.number).done for files in attempts(run))
    return max((done.step for done in seen if done is not None), default=0)


def _earlier(run: RunFiles, attempt: int) -> list[dict[str, Any]]:
    return [line for line in read_lines_of(run) if line.get("attempt", 0) < attempt]


def newest_plan(run: RunFiles) -> dict[str, Any]:
    for files in reversed(attempts(run)):
        try:
            plan: dict[str, Any] = read_json(files.plan)
        except (OSError, ValueError):
            continue
        if isinstance(plan, dict):
            return plan
    return {}


def _total(run: RunFiles, plan: dict[str, Any]) -> int | None:
    try:
        return int(plan["config"]["steps"]["total"])
    except (ValueError, KeyError, TypeError):
        pass
    try:
        return int(read_json(run.run_json)["config"]["steps"]["total"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
