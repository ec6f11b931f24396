"""longhaul checkpoint list|verify|diff: processes of their own (trainer/commands/checkpoint.py)."""

from __future__ import annotations

from launch.compute import compute, with_targets
from trainer.errors import Exit, Refused

_TARGETS = {"list": 1, "verify": 1, "diff": 2}
_HELP = """\
usage: longhaul checkpoint list|verify|diff RUN [...]

  list RUN              what is saved: step, size, whether it is complete
  verify RUN            read every byte and compare it with its checksum
  diff RUN OTHER        what differs between the newest checkpoints of two runs or folders

example: longhaul checkpoint verify first-run
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return Exit.DONE
    verb, *rest = argv
    if verb not in _TARGETS:
        raise Refused(f"longhaul checkpoint has no verb {verb!r}; there is {', '.join(_TARGETS)}")
    return compute("trainer.commands.checkpoint", [verb, *with_targets(rest, count=_TARGETS[verb])])
