"""The attempt after one that failed: same settings, same plan, one number more. No torch.

Only where memory ran out it is another plan: the same steps in smaller pieces (smaller.py).

Each attempt has one restarter: whoever holds the nodes makes the next one here.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.node.ranks_spec import RANKS_FILE
from launch.outcome import Outcome, newest_checkpoint, observe
from launch.run.kept_states import kept_by
from launch.run.lineage import write_lineage
from launch.run.liveness import own_mark, write_mark
from launch.run.run_folder import new_attempt
from launch.run.smaller import in_smaller_pieces
from trainer.errors import Superseded
from trainer.records.json_file import fsync_folder, read_json, write_json
from trainer.records.owner import refuse_if_superseded
from trainer.records.run_files import AttemptFiles, RunFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal, end_withdrawals

RESTART_FILE = "restart.json"  # under the attempt's folder, if it was started by itself


@dataclass(frozen=True)
class Restart:
    """Why an attempt was started without anybody asking. `parked`: under checkpoints/, or ""."""

    restart_of: int
    cause: str
    why: str
    from_step: int
    parked: str
    time: float


def next_attempt(run: RunFiles, files: AttemptFiles, outcome: Outcome) -> AttemptFiles:
    """Make the folder and the plan of the attempt after `files`. The run must be locked.

    Raises: Superseded if another attempt owns the run; OSError if the folder cannot be written.
    """
    refuse_if_superseded(run.owner, files.number)
    parked, newest = "", newest_checkpoint(run)
    if outcome.step_back and observe(run, files.number).from_step > newest:
        _withdraw_copies(run, files, newest)  # what nothing went on from lay in memory
    elif outcome.step_back:
        _withdraw_copies(run, files, newest - 1)
        parked = park(run, newest, outcome.why).relative_to(run.root).as_posix()
    elif outcome.cause == "hardware" and kept_by(files):  # only the disk's steps were checked
        _withdraw_copies(run, files, newest)
    following = new_attempt(run)
    write_mark(following.agent, own_mark())
    (following.root / RANKS_FILE).parent.mkdir(mode=0o700, parents=True)
    (following.root / RANKS_FILE).touch(mode=0o600)
    shutil.copyfile(files.root / RANKS_FILE, following.root / RANKS_FILE)
    restart = Restart(
        restart_of=files.number,
        cause=outcome.cause or "",
        why=outcome.why,
        from_step=newest_checkpoint(run),
        parked=parked,
        time=time.time(),
    )
    write_json(following.root / RESTART_FILE, asdict(restart))
    if files.plan.exists():  # last: an attempt with a plan is complete
        plan, change = read_json(files.plan), None
        if outcome.cause == "oom":
            plan, change = in_smaller_pieces(plan)
        found = (change,) if change is not None else ()
        for one in found:
            said = f"attempt {following.number} has {one.where}={one.new} instead of {one.old}"
            with suppress(OSError):  # the terminal is gone; the lineage says it
                print(said, file=sys.stderr, flush=True)
        write_lineage(run, following.number, world_size=plan["world_size"], found=found)
        write_json(following.plan, plan | {"attempt": following.number})
    return following


def park(run: RunFiles, step: int, why: str) -> Path:
    """Move a checkpoint out of every reader's sight, with a note saying why. Never deleted."""
    folder = run.checkpoints / "quarantine"
    folder.mkdir(mode=0o700, exist_ok=True)
    source = run.checkpoints / f"step-{step:08d}"
    number = 1
    while (target := folder / f"{source.name}.{number}").exists():
        number += 1
    source.rename(target)
    fsync_folder(folder)
    fsync_folder(run.checkpoints)
    note = f"set aside whole, because nothing went on from it: {why}\n"
    (target / "why.txt").touch(mode=0o600)
    (target / "why.txt").write_text(note, encoding="utf-8")
    return target


def _withdraw_copies(run: RunFiles, files: AttemptFiles, after: int) -> None:
    """Else the ranks would go on from the copy, elsewhere or in memory, of what is set aside."""
    settings = read_json(files.plan)["config"]["checkpoint"] if files.plan.exists() else {}
    remote = settings.get("remote") or {}
    if remote.get("url") or kept_by(files) is not None:
        mark = Withdrawal(attempt=files.number, time=time.time(), after=after)
        add_withdrawal(run.withdrawn, mark)


def bring_back(run: RunFiles, attempt: int) -> str:
    """Undo a step back that did not help, unless that step was saved again; what was done."""
    for number in range(attempt, 0, -1):
        try:
            restart = read_json(run.attempt(number).root / RESTART_FILE)
            parked = str(restart["parked"])
        except (OSError, ValueError, KeyError):
            return ""  # not started by itself: the row of failures began here
        if parked:
            break
    else:
        return ""
    source = run.root / parked
    target = run.checkpoints / source.name.rpartition(".")[0]
    if not source.is_dir() or target.exists():
        return ""
    (source / "why.txt").unlink(missing_ok=True)
    source.rename(target)
    fsync_folder(run.checkpoints)
    step = int(target.name.removeprefix("step-"))
    end_withdrawals(run.withdrawn, attempt=int(restart["restart_of"]), after=step - 1)
    return f"{target.name} was set aside in vain and is back"


def superseded(run: RunFiles, files: AttemptFiles) -> Superseded | None:
    """Whether another attempt owns the run by now; None too where that cannot be read."""
    try:
        refuse_if_superseded(run.owner, files.number)
    except Superseded as e:
        return e
    except OSError:
        return None
    return None
