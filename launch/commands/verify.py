"""longhaul verify layouts|resume: proofs on the user's own settings, shrunk, with real ranks."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from launch.settings.asked import resolved, split
from trainer.config.names import nearest
from trainer.errors import Exit, Refused

_VERBS = ("layouts", "resume")
_HELP = """\
usage: longhaul verify layouts|resume [RUN] [key=value ...] [--config-dir DIR] [options]

  layouts    your settings, shrunk, on every layout they imply (ranks, accumulation, packing), each
             against an independent loop in one process: equal losses and weights; of another
             task than next tokens, on its own data, against the plain engine on one rank
  resume     a rank killed in the middle and the run resumed: equal, bit for bit, to the run that
             was left alone; and once more with one rank more: everything restored, losses close

options
  --steps N         steps of a run (20 for layouts, 24 for resume)
  --every-stage     layouts: ZeRO 0 to 3, not only the configured one
  --as-configured   layouts: in the configured precision, against the plain engine
  --lose ITEM       resume: throw moments, cursor, learning_rate or rng away after loading, to see
                    that it is found
  --json            the result as JSON

example: longhaul verify layouts model=llama_125m engine=zero3
"""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(_HELP, end="")
        return Exit.DONE
    verb, *rest = argv
    if verb not in _VERBS:
        near = nearest(verb, _VERBS)
        hint = f"did you mean {near}?" if near else f"there is {', '.join(_VERBS)}"
        raise Refused(f"longhaul verify has no verb {verb!r}; {hint}")
    settings, options = split(rest)
    parser = argparse.ArgumentParser(prog=f"longhaul verify {verb}", add_help=False)
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--root", default=None)
    parser.add_argument("--steps", type=int, default=20 if verb == "layouts" else 24)
    parser.add_argument("--json", action="store_true")
    if verb == "layouts":
        parser.add_argument("--every-stage", action="store_true")
        parser.add_argument("--as-configured", action="store_true")
    else:
        parser.add_argument("--lose", choices=("moments", "cursor", "learning_rate", "rng"))
    given = parser.parse_args(options)
    least = 1 if verb == "layouts" else 8
    if given.steps < least:
        raise Refused(f"--steps {given.steps}: at least {least}")
    config = resolved(settings, config_dirs=given.config_dir, root=given.root)
    with tempfile.TemporaryDirectory(prefix="longhaul-verify-") as folder:
        if verb == "resume":
            from launch.verify.resume import verify_resume

            return verify_resume(
                config, Path(folder), steps=given.steps, as_json=given.json, lose=given.lose
            )
        from launch.verify.layouts import verify_layouts

        return verify_layouts(
            config,
            Path(folder),
            steps=given.steps,
            every_stage=given.every_stage,
            as_configured=given.as_configured,
            as_json=given.json,
        )
