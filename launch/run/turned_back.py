"""At the end of a run: its copies elsewhere hear which steps it gave up, or took back.

Each start tells them once it loads (trainer/checkpoint/remote_loading.py). A run that ends badly
may have turned back since, and the next start may be another machine's, which knows nothing else.
Standard library only: the store's library is the child's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from launch.node.processes import die_with_parent
from launch.outcome import Outcome
from launch.run.run_folder import attempts
from trainer.errors import Exit
from trainer.records.json_file import read_json
from trainer.records.redact import redactor_of
from trainer.records.run_files import AttemptFiles, RunFiles

_LIMIT_S = 30.0
_IN_ORDER = (Exit.DONE, Exit.SAVED, Exit.INTERRUPTED)  # its ranks told; or it shall be quick


def tell_copies(run: RunFiles, outcome: Outcome) -> str:
    """What people should know; "" if all is well. Never raises, takes half a minute at most."""
    known = attempts(run)
    if outcome.exit_code in _IN_ORDER or not run.withdrawn.exists() or not known:
        return ""
    url = _url_of(known[-1])
    if url is None:
        return ""
    words = [str(run.root), "--attempt", str(known[-1].number)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trainer.commands.turned_back", *words],
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            preexec_fn=die_with_parent(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"no answer within {_LIMIT_S:.0f} s"
    except OSError as e:
        why = str(e)
    else:
        if done.returncode == Exit.DONE:
            return ""
        last = done.stderr.strip().rpartition("\n")[2]
        why = redactor_of(os.environ).text(last) or f"exit code {done.returncode}"
    return (
        f"the copies in {url} could not be told which steps the run gave up ({why}); start it "
        f"again on this machine first, or put {run.withdrawn} beside them"
    )


def _url_of(files: AttemptFiles) -> str | None:
    try:
        plan: dict[str, Any] = read_json(files.plan)
        found = plan["config"]["checkpoint"]["remote"]["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if found is None else str(found)
