"""What a rented machine runs: the ordinary start, with what a submission sent along.

    LONGHAUL_JOB=... python -m launch.cloud.node

A machine may be new, or come back: the run then goes on from its folder, if that outlived the
machine, or from its copies. What a person has to look at is not tried again by new machines.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.base import Backend
from launch.cloud.carried import VARIABLE, Carried, read_carried
from launch.cloud.peers import is_first, settings_of_peers
from launch.outcome import decide, observe
from launch.run.attempts import concluded
from launch.run.copies import adopt
from launch.run.run_folder import attempts, create, existing, read_record
from launch.stand import frozen_hash
from launch.start import start
from trainer.config.explain import validate
from trainer.config.schema import Config
from trainer.errors import Exit, LonghaulError, Refused
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles

SUBMISSION_FILE = "cloud.json"  # under the run folder: for which submission it was last started


def carry_on(carried: Carried, *, backend: Backend | None = None) -> int:
    """Run it to its end; the exit code. Raises: Refused, ConfigError, as `start` does."""
    installed = metadata.version("longhaul")
    if carried.version != installed:
        raise Refused(
            f"this machine has longhaul {installed}, the run was submitted by {carried.version}; "
            "launch.package or the image must have that version"
        )
    config = _settings(carried)
    run = _its_run(config, carried)
    if (code := _settled(run, carried)) is not None:
        print(f"{run.name} ended for good (exit code {code}); it is not started again")
        return code
    first = attempts(run)[-1].number + 1 if attempts(run) else 1
    if _submission(run).get("name") != carried.submission:
        write_json(run.root / SUBMISSION_FILE, {"name": carried.submission, "first": first})
    return start(config, backend=backend)


def _settings(carried: Carried) -> Config:
    values = carried.config
    values["run"]["root"] = str(Path(values["run"]["root"]).expanduser())
    if values["launch"]["kind"] != "local":
        values["launch"] = settings_of_peers(values["launch"], os.environ)
    return validate(values)


def _its_run(config: Config, carried: Carried) -> RunFiles:
    """Found here, brought back from its copies, or made with the identity that was sent."""
    root = Path(config.run.root)
    adopt(config, frozen_hash=frozen_hash(config))
    run = existing(root, config.run.name)
    if run is None:
        values = config.model_dump(mode="json")
        return create(root, config=values, frozen_hash=frozen_hash(config), run_id=carried.run_id)
    if read_record(run).run_id != carried.run_id:
        raise Refused(
            f"{run.root} on this machine is another run of that name; choose another run.name"
        )
    return run


def _settled(run: RunFiles, carried: Carried) -> int | None:
    """How this submission ended, if nothing may follow; None: there is something to do.

    A person who submits again has looked: that is another submission.
    """
    known = attempts(run)
    said = _submission(run)
    if said.get("name") != carried.submission or not known:
        return None
    newest = known[-1].number
    if newest < int(said.get("first", 1)):
        return None
    outcome = concluded(run, newest) or decide(observe(run, newest))
    return int(outcome.exit_code) if outcome.action == "give_up" else None


def _submission(run: RunFiles) -> dict[str, Any]:
    try:
        return dict(read_json(run.root / SUBMISSION_FILE))
    except (OSError, ValueError, TypeError):
        return {}


def main() -> int:
    text = os.environ.pop(VARIABLE, None)
    try:
        if text is None:
            raise Refused(f"there is no {VARIABLE} in the environment: a submission sets it")
        if not is_first(os.environ):
            print("the first machine starts the ranks of this one over ssh", flush=True)
            return Exit.DONE
        return carry_on(read_carried(text))
    except LonghaulError as e:
        print(str(e), file=sys.stderr, flush=True)
        return e.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
