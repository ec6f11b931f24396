"""What kind of failure it was, and what helps against it: from the error's own words. Pure.

The decision about restarts is made elsewhere, from causes (run/budgets.py); this is for people.
Words of PyTorch, NCCL, CUDA and nvidia-smi are those of logs that others have published; gloo's are
in the library that was installed (torch 2.13). No GPU has failed under this code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from launch.run.budgets import (
    HUNG,
    KILLED,
    LAUNCH_FAILED,
    NODE_LOST,
    NOT_TAKEN,
    OUT_OF_MEMORY,
    cause_of_error,
)
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord


@dataclass(frozen=True)
class Kind:
    name: str
    helps: str


_DEVICE_MEMORY = Kind(
    "out of memory",
    "a smaller batch.micro_batch_size, a higher engine stage, activation checkpointing or offload; "
    "longhaul plan --fit names what fits",
)
_HOST_MEMORY = Kind(
    "out of memory of the machine",
    "fewer ranks a machine, more memory for the job (launch.memory_gib), no offload to it; of "
    "CPU ranks a smaller batch.micro_batch_size",
)
_BAD_GPU = Kind(
    "bad GPU",
    "leave that machine out (launch.exclude, or another host) and have it looked at; longhaul "
    "doctor names it",
)
_DISK = Kind(
    "disk full",
    "longhaul runs gc says what can go; a smaller checkpoint.keep_last, or another run.root",
)
_NETWORK = Kind(
    "communication (NCCL or gloo)",
    "mostly another rank or its network was lost first: its log says why; longhaul doctor --pairs "
    "finds a bad link, NCCL_DEBUG=INFO says more",
)
_DATA = Kind("data", "mend or leave out what is named; longhaul data audit reads everything once")
_MODEL = Kind("model folder", "mend the folder that is named, or take another model.path")
_NUMBERS = Kind(
    "numbers that cannot be right",
    "longhaul replay RUN says whether data, numbers or hardware did it; a smaller "
    "optimizer.learning_rate",
)
_STORAGE = Kind("storage", "longhaul checkpoint verify RUN reads what is there once more")
_FOLDER = Kind("run folder", "what the message names")
_HANG = Kind("hang", "the stacks beside its log; longhaul doctor if it is often one machine")
_NODE = Kind("lost machine", "nothing, if it was one time; else leave that machine out")
_KILLED = Kind("killed from outside", "who sent that signal: a limit of the site, or a person")
_PLACE = Kind("not taken", "what its words name, then longhaul resume")
_SETTINGS = Kind("settings", "what the message names")
_SILENT = Kind("end without an error", "the end of its log: a library may have left by itself")
_OWN = Kind(
    "Longhaul itself", "the same attempt again may help; else the traceback, to its authors"
)
_USER = Kind("user code", "the traceback; longhaul train restart=off ends at the first failure")
_BY_CAUSE = {  # of attempts that no rank failed
    "preempt": Kind("preempted", "nothing: it goes on by itself where the place requeues it"),
    "time_limit": Kind(
        "time limit", "a longer launch.time_limit_h, launch.requeue or launch.chain"
    ),
}
_BY_KIND = {
    OUT_OF_MEMORY: _HOST_MEMORY,
    "MemoryError": _HOST_MEMORY,
    "OutOfMemoryError": _DEVICE_MEMORY,
    "DataError": _DATA,
    "ModelError": _MODEL,
    "NonFiniteStep": _NUMBERS,
    "ReplicasDiffer": _BAD_GPU,
    "WorldError": _NETWORK,
    "DistBackendError": _NETWORK,
    "DistNetworkError": _NETWORK,
    "PeerFailed": _NETWORK,
    "CheckpointError": _STORAGE,
    "DamagedCheckpoint": _STORAGE,
    "SaveFailed": _STORAGE,
    "TooManyFailedSaves": _STORAGE,
    "RunFolderError": _FOLDER,
    "Superseded": _FOLDER,
    "Exited": _SILENT,
    HUNG: _HANG,
    KILLED: _KILLED,
    NODE_LOST: _NODE,
    LAUNCH_FAILED: _NODE,
    NOT_TAKEN: _PLACE,
}
_BY_WORDS = (  # before the kind: a bad GPU may show as an error of NCCL
    (_DISK, r"no space left on device|disk quota exceeded|the disk of .* is full"),
    (
        _BAD_GPU,
        r"uncorrectable (ecc|nvlink) error|fallen off the bus|nvrm: xid|hardware stack error|"
        r"no cuda-capable device|device\(s\) is/are busy or unavailable|unable to determine the "
        r"device handle",
    ),
    (_DEVICE_MEMORY, r"cuda out of memory|cublas_status_alloc_failed|cuda error: out of memory"),
    (_HOST_MEMORY, r"can't allocate memory|cannot allocate memory"),
    (
        _NETWORK,
        r"\bnccl|watchdog caught collective operation timeout|\bgloo\b|connection (closed|reset) "
        r"by peer|socket timeout|store\.(get|wait)|timed out initializing process group",
    ),
)
_FILE = re.compile(r'^ *File "([^"]+)", line \d+', re.MULTILINE)
_LIBRARIES = re.compile(
    r"/(site|dist)-packages/(?!trainer/|launch/)|/lib/python3\.\d+/(?!(site|dist)-packages/)|^<"
)
_OURS = re.compile(r"(^|/)(trainer|launch)/[^/]")


def kind_of(error: ErrorRecord) -> Kind:
    """`error`: the first failure of an attempt."""
    if error.kind in (NOT_TAKEN, HUNG, OUT_OF_MEMORY):  # ours: what they quote is not the failure
        return _BY_KIND[error.kind]
    text = error.message.lower()
    found = next((kind for kind, words in _BY_WORDS if re.search(words, text)), None)
    if found is not None and not _is_ours_to_say(error):
        return found
    if error.kind in _BY_KIND:
        return _BY_KIND[error.kind]
    if cause_of_error(error) == "oom":
        return _DEVICE_MEMORY
    if error.exit_code in (Exit.REFUSED, Exit.STOP):
        return _SETTINGS
    return _OWN if _failed_in_ours(error.traceback) else _USER


def kind_of_cause(cause: str | None) -> Kind | None:
    """Of an attempt that ended without a failure of its own."""
    return _BY_CAUSE.get(cause or "")


def _is_ours_to_say(error: ErrorRecord) -> bool:
    """Data and models are named by us; a text in them may hold any words."""
    return error.kind in ("DataError", "ModelError")


def _failed_in_ours(traceback: str) -> bool:
    """Whether the innermost frame that is no library's is in this package."""
    frames = [path for path in _FILE.findall(traceback) if not _LIBRARIES.search(path)]
    return bool(frames) and _OURS.search(frames[-1]) is not None
