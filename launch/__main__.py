"""The command `longhaul`. Knows the verbs and loads the file of the one that was asked for."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module

from trainer.errors import Exit, LonghaulError

# verb -> (module under launch/commands, what it does). A verb is listed when it works.
VERBS = {
    "train": ("train", "compose the settings, plan, and run"),
    "plan": ("plan", "the numbers of a run: batch, memory, checkpoint size; starts nothing"),
    "sweep": ("sweep", "many runs: a search space, who proposes, what is behind, a budget"),
    "status": ("status", "how runs and sweeps stand"),
    "watch": ("watch", "runs while they run, in the terminal: curves, and where every rank is"),
    "logs": ("logs", "what a rank printed; --why: the first failure"),
    "report": ("report", "what a run was, on one page: curves, lost time, attempts, settings"),
    "compare": ("compare", "runs beside each other, and what differs in their plans"),
    "sync": ("sync", "tell W&B what it could not be told while a run was offline or killed"),
    "stop": ("stop", "save and stop a running run or sweep"),
    "resume": ("resume", "go on with a run, with other settings where that is possible"),
    "runs": ("runs", "list, rename, move, gc: run folders and their disk"),
    "data": ("data", "prepare, audit, show, clean: from corpus to token store to rows"),
    "checkpoint": ("checkpoint", "list, verify, diff: what is saved, is it whole, what differs"),
    "evaluate": ("evaluate", "loss and accuracy on the held-out split"),
    "generate": ("generate", "continue a prompt"),
    "ask": ("ask", "questions of your own: choice by likelihood, or written answers, scored"),
    "export": ("export", "a Hugging Face folder, checked against the trained model"),
    "replay": ("replay", "make a step that went wrong again: data, numeric or hardware?"),
    "verify": ("verify", "layouts, resume: proofs on your own settings"),
    "doctor": ("doctor", "is this machine, cluster, network, storage fit"),
}
# What a user can mend: a full or read-only disk, a place that is not theirs or is no folder.
_OF_THE_PLACE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EEXIST,
}
_EXAMPLES = """\
examples
  longhaul train                                     a small model on this machine's Python sources
  longhaul train model=llama_125m engine=zero3       other choices; every setting is key=value
  longhaul train --dry-run steps.total=50            what would be written and run
  longhaul status                                    how the runs under runs/ stand
  longhaul VERB --help                               one verb, with an example
  eval "$(longhaul --shell-completion install=bash)" completion of verbs, settings and runs
"""


def usage() -> str:
    width = max(map(len, VERBS))
    listing = "\n".join(f"  {verb.ljust(width)}  {about}" for verb, (_, about) in VERBS.items())
    return f"usage: longhaul VERB [...]\n\nverbs\n{listing}\n\n{_EXAMPLES}"


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit codes are those of trainer.errors.Exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except LonghaulError as e:
        _complain(str(e))
        return e.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # `longhaul runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return Exit.DONE
    except OSError as e:
        if e.errno not in _OF_THE_PLACE:
            raise
        _complain(f"cannot write {e.filename or 'here'}: {e.strerror}")
        return Exit.STOP if e.errno in (errno.ENOSPC, errno.EDQUOT) else Exit.REFUSED


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return Exit.DONE
    verb, *rest = arguments
    if verb == "--version":
        from importlib.metadata import version

        print(f"longhaul {version('longhaul')}")
        return Exit.DONE
    if verb in ("--shell-completion", "-sc"):
        from launch.settings.completion import run as complete

        return complete(rest)
    if verb not in VERBS:
        _complain(_unknown(verb))
        return Exit.REFUSED
    command: Callable[[list[str]], int] = import_module(f"launch.commands.{VERBS[verb][0]}").main
    return command(rest)


def _unknown(verb: str) -> str:
    from trainer.config.names import nearest

    near = nearest(verb, list(VERBS))
    if near is None and "=" in verb:
        return f"{verb} is a setting and needs a verb before it: longhaul train {verb}"
    hint = f"did you mean {near}?" if near else f"there is {', '.join(VERBS)}"
    return f"longhaul has no verb {verb!r}; {hint}"


def _complain(text: str) -> None:
    from trainer.records.redact import redactor_of

    print(redactor_of(os.environ).text(text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
