"""Where everything is in a run folder. Paths only: nothing here touches the disk.

run.json                identity and frozen settings; written once
owner                   the attempt that may write
frozen.json             digests of the folder that frozen parameters come from, if they do
imported.json           the plan that an imported checkpoint was made for, if one was
attempts.jsonl          one line an attempt: when, how, why it ended
lineage.jsonl           what each attempt went on from, and what was changed
withdrawn.json          checkpoints that copies elsewhere may still hold, and that count no more
copies.json             where copies were put, and the newest of them
attempts/0001/          plan.json  submission/  started.json  stop.json  done.json
                        error.json  ended.json  agent.json  rank-00003.log  stacks/
metrics.jsonl           one line a logged step
ledger/node-0.jsonl     what happened when, by the agent
watch.json              the longest phases so far
checkpoints/step-00000100/
incidents/step-00000123/ what each rank had when a step went wrong
figures/step-00000100/  what an evaluation has to show: confusion.html, lengths.html
report.html             what the run was, by longhaul report
tensorboard/  wandb/  profile/  export/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r"step-([0-9]{8,16})")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder of checkpoints/ holds by its name.

    None for every other name, also for another spelling of one: step-8, step-000000008.
    """
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


@dataclass(frozen=True)
class AttemptFiles:
    """The files of one attempt; `root` is `attempts/0001` of a run folder."""

    root: Path

    @property
    def number(self) -> int:
        return int(self.root.name)

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def submission(self) -> Path:
        return self.root / "submission"

    @property
    def agent(self) -> Path:
        """Which process carries the attempt on this host; see launch/run/liveness.py."""
        return self.root / "agent.json"

    @property
    def ended(self) -> Path:
        """How every rank ended, by the agent; see launch/outcome.py."""
        return self.root / "ended.json"

    @property
    def started(self) -> Path:
        return self.root / "started.json"

    @property
    def stop(self) -> Path:
        return self.root / "stop.json"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def stacks(self) -> Path:
        """Stacks of all ranks, once one hung; see launch/watch/stacks.py."""
        return self.root / "stacks"

    @property
    def upload_failures(self) -> Path:
        """Which ranks gave up on which step; see trainer/checkpoint/upload_failures.py."""
        return self.root / "upload-failures"

    def rank_log(self, rank: int) -> Path:
        return self.root / f"rank-{rank:05d}.log"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run; `root` is its folder."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def owner(self) -> Path:
        return self.root / "owner"

    @property
    def attempts_log(self) -> Path:
        return self.root / "attempts.jsonl"

    @property
    def lineage(self) -> Path:
        """What each attempt went on from; see trainer/records/lineage.py."""
        return self.root / "lineage.jsonl"

    @property
    def imported(self) -> Path:
        """The plan that `checkpoint import` fitted the foreign state to."""
        return self.root / "imported.json"

    def plan_behind(self, attempt: int) -> Path:
        """The plan of the attempt that a manifest names; 0 is an import, before any attempt."""
        return self.attempt(attempt).plan if attempt else self.imported

    @property
    def frozen(self) -> Path:
        """Where what no checkpoint has comes from; see trainer/records/frozen_folder.py."""
        return self.root / "frozen.json"

    @property
    def withdrawn(self) -> Path:
        """Steps the run has turned its back on; see trainer/records/withdrawn.py."""
        return self.root / "withdrawn.json"

    @property
    def copies(self) -> Path:
        """Places that hold copies of the run's steps; see trainer/records/copies.py."""
        return self.root / "copies.json"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def watch(self) -> Path:
        """The longest phases so far, so that a restart knows them; see launch/watch/limits.py."""
        return self.root / "watch.json"

    def ledger(self, node: int) -> Path:
        """What happened when on one node; see trainer/records/ledger.py."""
        return self.root / "ledger" / f"node-{node}.jsonl"

    @property
    def incidents(self) -> Path:
        """Steps whose numbers were wrong; see trainer/guard/incident.py."""
        return self.root / "incidents"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def figures(self) -> Path:
        """A folder a step that `longhaul evaluate` has scored."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def wandb(self) -> Path:
        return self.root / "wandb"

    @property
    def profile(self) -> Path:
        return self.root / "profile"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def attempt(self, number: int) -> AttemptFiles:
        return AttemptFiles(self.attempts / f"{number:04d}")
