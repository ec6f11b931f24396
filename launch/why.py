"""What `logs --why` says: the first failure of an attempt, and what came after it."""

from __future__ import annotations

import time
from contextlib import suppress

from launch.kinds_of_failure import kind_of, kind_of_cause
from launch.node.failure import failure_text, read_failure
from launch.outcome import newest_checkpoint
from launch.run.attempts import concluded, read_lines_of
from launch.run.lease import BEAT_FILE
from launch.run.liveness import read_mark
from launch.run.run_folder import attempts
from launch.run.standing import standing
from launch.run.status import status_of
from trainer.errors import Exit
from trainer.records.attempt import read_started
from trainer.records.json_file import read_lines
from trainer.records.ledger import read_ledger
from trainer.records.lineage import read_lineage
from trainer.records.run_files import AttemptFiles, RunFiles

_NO_FAILURE = (Exit.DONE, Exit.SAVED, Exit.INTERRUPTED)


def why_text(run: RunFiles, files: AttemptFiles, *, is_chosen: bool) -> str:
    """`files`: the attempt asked for, or the newest. Where that one was not chosen and did not
    fail, the newest that did is told too: a restart must not hide it."""
    if read_failure(files) is not None:
        return _failure(run, files)
    how = _how_it_stands(run, files)
    said = f"no rank of attempt {files.number} failed: {how}"
    if _is_failed(run, files):  # nobody was left to say it
        return "\n".join([said, *_known(run, files), *_followed(run, files)])
    if (ended := concluded(run, files.number)) and (kind := kind_of_cause(ended.cause)):
        said = f"{said}\n  kind: {kind.name}; what helps: {kind.helps}"
    if is_chosen:
        return said
    earlier = [a for a in attempts(run) if a.number < files.number]
    for other in reversed(earlier):
        if read_failure(other) is not None or _is_failed(run, other):
            return f"{said}\nthe newest that failed:\n\n{why_text(run, other, is_chosen=True)}"
    return said


def _failure(run: RunFiles, files: AttemptFiles) -> str:
    error = read_failure(files)
    assert error is not None
    trace = ["", error.traceback.rstrip()] if error.traceback else []
    kind = kind_of(error)
    lines = [f"attempt {files.number}: {failure_text(files)}", f"  kind: {kind.name}"]
    return "\n".join([*lines, *_followed(run, files), f"  what helps: {kind.helps}", *trace])


def _how_it_stands(run: RunFiles, files: AttemptFiles) -> str:
    outcome = concluded(run, files.number)
    if outcome is not None:
        return outcome.why
    status = status_of(run, standing(run).job)
    if status.state in ("pending", "running", "stopping", "unknown"):
        return f"it is {status.state} ({status.why})"
    return status.why or status.state


def _is_failed(run: RunFiles, files: AttemptFiles) -> bool:
    outcome = concluded(run, files.number)
    if outcome is not None:
        return outcome.exit_code not in _NO_FAILURE
    if any(other.number > files.number for other in attempts(run)):
        return False
    return status_of(run, standing(run).job).state in ("failed", "gave up")


def _known(run: RunFiles, files: AttemptFiles) -> list[str]:
    """Of an attempt whose agent wrote no end: who it was, and the last that was seen of it."""
    if files.ended.exists():
        return []
    lines = []
    mark = read_mark(files.agent)
    if mark is not None:
        who = f"process {mark.pid} on {mark.host}"
        lines.append(f"  its agent, {who}, was killed, or that machine went down")
    step, moment = _last_seen(run, files)
    if moment:
        known = f"step {step:,} was done" if step else "no step is known to be done"
        lines.append(f"  {known}; last sign of life {_clock(moment)}")
    if files.rank_log(0).exists():
        lines.append(f"  its log: {files.rank_log(0)}")
    return lines


def _last_seen(run: RunFiles, files: AttemptFiles) -> tuple[int, float]:
    """(furthest step, newest moment) of all that it left: each of these may be behind; 0: none."""
    steps, moments = [_saved(run, files)], [0.0]
    for line in read_lines(run.metrics):
        if line.get("attempt") == files.number:
            steps.append(int(line.get("step", 0)))
            moments.append(float(line.get("time", 0)))
    for event in read_ledger(run.ledger(0)):
        if event.attempt == files.number:
            steps.append(int(event.facts.get("furthest", 0)))
            moments.append(event.time)
    with suppress(OSError):
        moments.append((files.root / BEAT_FILE).stat().st_mtime)
    return max(steps), max(moments)


def _saved(run: RunFiles, files: AttemptFiles) -> int:
    """Step of the newest checkpoint when it was over."""
    for line in read_lines_of(run):
        if line.get("attempt") == files.number:
            return int(line.get("checkpoint_step") or 0)
    return newest_checkpoint(run)


def _followed(run: RunFiles, files: AttemptFiles) -> list[str]:
    after = next((a for a in attempts(run) if a.number > files.number), None)
    if after is None:
        return []
    started = read_started(after.started)
    begun = f"went on from step {started.step:,}" if started else "came after it"
    outcome = concluded(run, after.number)
    ending = f": {outcome.why}" if outcome is not None else ""
    changed = next((d.changes for d in read_lineage(run.lineage) if d.attempt == after.number), ())
    tried = "".join(f", with {one['where']}={one['new']} for {one['old']}" for one in changed)
    return [f"  then attempt {after.number} {begun}{tried}{ending}"]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
