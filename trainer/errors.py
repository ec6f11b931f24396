"""Every error Longhaul raises on purpose, and the exit code each one means.

LonghaulError                 76  failed; start me again
|- Refused                     2  nothing was written; what was asked cannot be done
|  `- ConfigError              2  the settings cannot work; lists every problem found
|- RunFolderError             78  the run folder is not what this command expects
|  `- Superseded              78  another attempt owns the run; this one may no longer write
|- DataError                  78  a corpus, a tokenizer or a token store is not usable; what a
|                                 preparation sees before it writes anything is Refused
|- ModelError                 78  a model folder is not usable, or its rows leak into each other
|- WorldError                 76  the process group is not as planned
|  |- NotAdmitted             76  this process has no place in the attempt; it must not speak for it
|  `- PeerFailed              as the first failing rank's: another rank failed, this one only heard
|- CheckpointError            76
|  |- DamagedCheckpoint       76  a checkpoint does not match its manifest
|  |- CheckpointMismatch      78  a whole checkpoint, but of another run, model or version
|  |- SaveFailed              76  one save failed on some rank; the run goes on
|  `- TooManyFailedSaves      78  `checkpoint.max_failed_saves` in a row
|- ReplicasDiffer             76  ranks that must hold the same weights do not (kind: hardware)
`- NonFiniteStep              78  steps went wrong, and neither skipping nor going back helped
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every process of Longhaul: commands, agents and ranks."""

    DONE = 0
    REFUSED = 2  # nothing was written
    SAVED = 75  # stopped on request after a save; start again
    FAILED = 76  # start again
    STOP = 78  # do not start again before somebody looked
    NO_PROGRESS = 79
    INTERRUPTED = 130  # Ctrl-C twice


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting."""

    where: str  # dotted path of the setting, "engine.stage"; or a file, "corpus.jsonl line 7"
    what: str  # what was given and why it cannot work
    fix: str  # an override that would work, or what to do; may be empty

    def __str__(self) -> str:
        tail = f"\n     try: {self.fix}" if self.fix else ""
        return f"{self.where}: {self.what}{tail}"


class LonghaulError(Exception):
    """Base of all deliberate errors: its text is one clear sentence for a person."""

    exit_code: Exit = Exit.FAILED


class Refused(LonghaulError):
    exit_code = Exit.REFUSED


class ConfigError(Refused):
    """Raised once, with all problems, before anything is written or submitted."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        listing = "\n".join(f"  {i}. {p}" for i, p in enumerate(self.problems, 1))
        super().__init__(f"{len(self.problems)} {noun} in the configuration\n{listing}")


class RunFolderError(LonghaulError):
    exit_code = Exit.STOP


class Superseded(RunFolderError):
    pass


class DataError(LonghaulError):
    exit_code = Exit.STOP


class ModelError(LonghaulError):
    exit_code = Exit.STOP


class WorldError(LonghaulError):
    pass


class NotAdmitted(WorldError):
    pass


class PeerFailed(WorldError):
    """An echo: the cause is another rank's error, which that rank records itself."""

    def __init__(self, said: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(said)
        self.exit_code = exit_code


class CheckpointError(LonghaulError):
    pass


class DamagedCheckpoint(CheckpointError):
    pass


class CheckpointMismatch(CheckpointError):
    exit_code = Exit.STOP


class SaveFailed(CheckpointError):
    pass


class TooManyFailedSaves(CheckpointError):
    exit_code = Exit.STOP


class ReplicasDiffer(LonghaulError):
    """A silent corruption: which rank, as far as a majority tells."""


class NonFiniteStep(LonghaulError):
    exit_code = Exit.STOP
