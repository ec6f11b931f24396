"""A process that has imported everything and becomes ranks when it is told to.

    python -m trainer.standby CHANNEL [--quiet] PADDING      (started by the agent of a node)

Imports are most of what a start costs. Here they are made once a node: every rank of every attempt
is a fork, milliseconds old, with these modules in memory that all of them share. Forking is safe
because this process has one thread and no CUDA, which is asked of the kernel before every fork.
A rank is forked twice, so that it becomes a child of the agent, whose subreaper flag adopts it:
exit codes, signals and the kernel's death signal are as if the agent had started it.

The channel carries one JSON object a message: the settings first, then a request a rank, with its
output, its error output and what it listens on as descriptors; every one is answered.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

_MESSAGE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_LEAST_PRIORITY = 19
_COMMAND, _ENVIRONMENT = 45, 47  # arg_start, env_start in /proc/self/stat, counted after the name
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    _show("longhaul-standby", _COMMAND)
    channel = socket.socket(fileno=int(given[0]))
    began = time.monotonic()
    settings = json.loads(channel.recv(_MESSAGE_BYTES))
    if "--quiet" in given:
        # Priorities belong to threads: this one keeps its own, and the ranks inherit that.
        thread = threading.Thread(target=_import_quietly, args=(settings,))
        thread.start()
        thread.join()
    else:
        import_all(settings)
    gc.collect()
    gc.freeze()  # a collection in a rank would copy every page it looks at
    _answer(channel, {"ready": round(time.monotonic() - began, 3)})
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 3)
        if not data:
            return 0  # the agent is gone
        unsafe = why_not_fork()
        if unsafe:
            _answer(channel, {"error": unsafe})
        else:
            _fork_rank(channel, json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def import_all(settings: dict[str, Any]) -> None:
    """What a rank with these settings (`config`, `device`) imports, as far as it is known here.

    Nothing without settings.
    """
    if settings["config"] is None:
        return
    from trainer.config.schema import Config
    from trainer.config.sections.training import DeepSpeedEngine

    config = Config.model_validate(settings["config"])
    for name in ("trainer.build", "trainer.loop", "trainer.dist.join"):
        importlib.import_module(name)
    from trainer.models.build import import_family

    import_family(config.model)
    if isinstance(config.engine, DeepSpeedEngine):
        from trainer.engine.deepspeed import import_deepspeed

        import_deepspeed(settings["device"], optimizer=config.optimizer.kind)


def why_not_fork(process: Path = Path("/proc/self")) -> str:
    """What the kernel knows of this process that a forked one could not live with; "": nothing."""
    threads = len(list((process / "task").iterdir()))
    if threads > 1:
        return f"{threads} threads: a fork of them would hang"
    for descriptor in (process / "fd").iterdir():
        # CUDA opens it when it is initialised; a forked process could not use it any more.
        if descriptor.is_symlink() and descriptor.readlink() == Path("/dev/nvidia-uvm"):
            return "an import has initialised CUDA, which does not survive a fork"
    return ""


def _import_quietly(settings: dict[str, Any]) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
    import_all(settings)


def _fork_rank(channel: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Fork a child of a child. Once the one in between is gone, the agent has adopted it."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        me = os.getpid()
        rank = os.fork()
        if rank == 0:
            for descriptor in (channel.detach(), reader, writer):
                os.close(descriptor)
            _become_rank(request, descriptors, born_by=me)
        os.write(writer, str(rank).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(between, 0)
    _answer(channel, {"pid": int(os.read(reader, 32))})
    os.close(reader)


def _become_rank(request: dict[str, Any], descriptors: list[int], *, born_by: int) -> NoReturn:
    """As an interpreter that was started with this command line, environment and output."""
    code = 1
    try:
        while os.getppid() == born_by:
            time.sleep(0.0005)
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != request["agent"]:
            os._exit(1)
        os.setsid()
        os.umask(0o077)
        for place, descriptor in enumerate(descriptors[:2], 1):
            os.dup2(descriptor, place)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["env"])
        if request["listener"]:
            os.environ[request["listener"]] = str(descriptors[2])
        _show("\0".join(f"{k}={v}" for k, v in request["env"].items()), _ENVIRONMENT)
        os.chdir(request["cwd"])
        random.seed()
        module, *arguments = request["argv"]
        _show("\0".join([sys.executable, "-m", module, *arguments]), _COMMAND)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answer(channel: socket.socket, value: dict[str, Any]) -> None:
    channel.send(json.dumps(value).encode())


def _show(text: str, place: int) -> None:
    """What ps and /proc show from now on, over what we were started with.

    `place`: of the address in /proc/self/stat. Nothing of ours points there any more: Python keeps
    its own copy of the arguments, and every variable of a rank was set anew.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[place]), int(fields[place + 1])
        room = end - start
        if 0 < room < 1 << 20:
            shown = text.encode(errors="surrogateescape")[: room - 1]
            ctypes.memmove(start, shown.ljust(room, b"\0"), room)
    except (OSError, ValueError, IndexError):
        return


if __name__ == "__main__":
    sys.exit(main())
