"""longhaul checkpoint list|verify|diff|import: processes of their own (trainer/commands/)."""

from __future__ import annotations

from launch.compute import compute, with_targets
from trainer.errors import Exit, Refused

_VERBS = ("list", "verify", "diff", "import")
_HELP = """\
usage: longhaul checkpoint list|verify|diff RUN [STEP ...] [--json]
       longhaul checkpoint import SOURCE RUN [key=value ...] [--weights-only]

  list RUN              what is saved: step, size, whether it is complete
  verify RUN [STEP]     read every byte and compare it with its checksum
  diff RUN STEP [STEP]  what differs between two steps, or a step and the newest
  import SOURCE RUN     a new run that goes on from another program's checkpoint: DeepSpeed's
                        (ZeRO 1 to 3), torch DCP, Hugging Face, torch.save; nothing in it is run

example: longhaul checkpoint verify first-run
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return Exit.DONE
    verb, *rest = argv
    if verb not in _VERBS:
        raise Refused(f"longhaul checkpoint has no verb {verb!r}; there is {', '.join(_VERBS)}")
    if verb == "import":
        from launch.importing import import_run

        return import_run(rest)
    return compute("trainer.commands.checkpoint", [verb, *with_targets(rest, count=1)])
