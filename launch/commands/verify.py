"""longhaul verify layouts|resume: proofs on the user's own settings; processes of their own."""

from __future__ import annotations

import argparse

from launch.compute import compute, config_file
from launch.settings import resolved, split
from trainer.errors import Exit, Refused

_VERBS = {
    "layouts": "trainer.commands.verify_layouts",
    "resume": "trainer.commands.verify_resume",
}
_HELP = """\
usage: longhaul verify layouts|resume [RUN] [key=value ...] [--config-dir DIR] [options]

  layouts    your settings, shrunk, on every layout they imply (ranks, accumulation, ZeRO stage,
             packing), each against one process: equal losses and weights
  resume     interrupted and continued equals uninterrupted, on your settings, shrunk

example: longhaul verify layouts model=llama_125m engine=zero3
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return Exit.DONE
    verb, *rest = argv
    if verb not in _VERBS:
        raise Refused(f"longhaul verify has no verb {verb!r}; there is {', '.join(_VERBS)}")
    if {"-h", "--help"} & set(rest):
        return compute(_VERBS[verb], ["--help"])
    parser = argparse.ArgumentParser(prog=f"longhaul verify {verb}", add_help=False)
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--root", default=None)
    given, others = parser.parse_known_args(rest)
    settings, options = split(others)
    config = resolved(settings, config_dirs=given.config_dir, root=given.root)
    with config_file(config.model_dump(mode="json")) as path:
        return compute(_VERBS[verb], [str(path), *options])
