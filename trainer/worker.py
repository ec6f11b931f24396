"""One rank: read the plan, meet the others, build, resume, train, write what came of it.

    python -m trainer.worker RUN_FOLDER --attempt N
    torchrun --nproc-per-node 2 -m trainer.worker RUN_FOLDER --attempt N

Who this rank is comes from RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT, all else from the
run folder. Exit codes: trainer/errors.py. Heavy imports stand inside functions: signal handlers
must be in place before torch is imported, and the time it takes is measured.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.dist.claim import claim_rank
from trainer.dist.place import Place
from trainer.dist.signals import StopSignals
from trainer.dist.startup import StartUp
from trainer.errors import Exit, LonghaulError, NotAdmitted
from trainer.faultpoints import arm_from
from trainer.plan import plan_of_attempt
from trainer.records import attempt as records
from trainer.records.owner import refuse_if_superseded
from trainer.records.redact import hide_secrets
from trainer.records.run_files import RunFiles

if TYPE_CHECKING:  # at run time they come with torch, after the signal handlers stand
    from trainer.observers.base import Observer

_ECHO_WAITS_S = 2.0  # so that the rank that knows the cause writes error.json first


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m trainer.worker", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    hide_secrets(os.environ)
    form = "%(levelname)s %(name)s: %(message)s"  # stdout: what rank 0 says there, a person sees
    logging.basicConfig(level=logging.WARNING, format=form, stream=sys.stdout)
    # torch 2.13 about names that DeepSpeed 0.19 calls; thousands of lines under ZeRO-3.
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a vendor that asks a question gets no answer
    rank = Rank(RunFiles(given.run_folder.resolve()), given.attempt)
    try:
        code: int = rank.run()
    except BaseException as e:
        code = rank.fail(e)
    rank.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: what vendors do at exit (uploads, groups of dead peers) may wait for ever.
    os._exit(code)


class Rank:
    """One rank of one attempt, from start to exit code."""

    def __init__(self, run: RunFiles, attempt: int) -> None:
        self._run = run
        self._files = run.attempt(attempt)
        self._startup = StartUp()
        self._stop = StopSignals()
        self._place = Place()
        self._state: Any = None  # TrainState, once there is one; errors name its step
        self._observers: Sequence[Observer] = ()

    def run(self) -> Exit:
        """Raises: whatever ends the attempt; every LonghaulError knows its exit code."""
        self._place = Place.from_env()
        plan = plan_of_attempt(self._files)
        self._place.check(plan.world_size)
        refuse_if_superseded(self._run.owner, self._files.number)
        claim_rank(self._files.root, self._place.rank)
        arm_from(os.environ, enabled=plan.config.drills.enabled, rank=self._place.rank)
        self._startup.lap("python")
        from trainer.build import build_job, build_observers
        from trainer.dist.join import join
        from trainer.dist.world import leave
        from trainer.job import done_of, wind_up
        from trainer.loop import fit

        self._startup.lap("imports")
        world = join(
            self._place,
            device=plan.device,
            threads=plan.threads_per_rank,
            timeout_s=plan.config.resources.collective_timeout_s,
            token=f"{plan.run_id}.{plan.attempt}",
        )
        self._startup.lap("meet")
        job, state = build_job(plan, world, run=self._run, stop=self._stop, startup=self._startup)
        self._state = state
        if world.max([float(self._stop.is_set())])[0]:
            self._stop.record(self._files.stop)
            return Exit.SAVED  # nothing happened since the last save
        if world.place.rank == 0:
            watch = build_observers(plan, self._run, job=job, state=state, startup=self._startup)
            job = replace(job, observers=watch)
            self._observers = watch
            started = records.Started(time.time(), state.step, plan.world_size, gethostname())
            records.write_record(self._files.started, started)
        outcome = fit(job, state)
        if outcome != "finished":
            self._stop.record(self._files.stop, paused=outcome == "paused")
        elif world.place.rank == 0:
            records.write_record(self._files.done, done_of(job, state))
        wind_up(job, state.step)
        leave(world)
        return Exit.DONE if outcome == "finished" else Exit.SAVED

    def fail(self, error: BaseException) -> int:
        """Say why, in the rank's log and in error.json. Returns the exit code."""
        echoes = False
        if self._startup.seconds or not isinstance(error, LonghaulError):
            from trainer.dist.world import is_echo

            traceback.print_exception(error)
            if echoes := is_echo(error):
                time.sleep(_ECHO_WAITS_S)
        elif self._place.local_rank == 0:  # a wrong start: one sentence, once a node
            print(f"error: {error}", file=sys.stderr)
        else:
            time.sleep(_ECHO_WAITS_S)  # torchrun ends the others as soon as one rank has ended
        step = self._state.step if self._state else None
        record = records.error_record(error, rank=self._place.rank, step=step, is_echo=echoes)
        if self._files.root.is_dir() and not isinstance(error, NotAdmitted):
            records.write_first(self._files.error, record)
        return record.exit_code

    def close(self) -> None:
        """After the records are written: an observer may take its time."""
        for observer in self._observers:
            observer.close()


if __name__ == "__main__":
    main()
