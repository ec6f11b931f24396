"""longhaul data prepare|audit|show|clean: from settings to token store; processes of their own."""

from __future__ import annotations

import argparse

from launch.compute import compute, config_file
from launch.settings.asked import resolved, split
from trainer.errors import Exit, Refused

_VERBS = {
    "prepare": "trainer.commands.prepare",
    "audit": "trainer.commands.data_audit",
    "show": "trainer.commands.data_show",
    "clean": "trainer.commands.data_clean",
}
_HELP = """\
usage: longhaul data prepare|audit|show|clean [key=value ...] [RUN] [--config-dir DIR] [options]

  prepare    tokenize the sources into token stores; what is current is left as it is
  audit      of labelled examples: what is wrong with them, row by row, and some as the model
             sees them; of text: what the stores hold and steps consume
  show       a row as the model sees it: tokens, labels, positions, documents
  clean      a corpus written again without copies, bad texts and what evaluations are made of

Settings are those of `longhaul train`; a run's name stands for the settings of that run.

options
  --first-step A --last-step B    audit: of these steps (1 to steps.total)
  --step S --row K                show: a row of a step's batch (step 1, row 0)
  --sample N                      show: by its number in the order of all samples, from 0
  --to FOLDER                     clean: a new folder, for one JSONL file a source and a report
  --near-copies --quality         clean: leave out texts that are nearly an earlier one; that
                                  break rules made for English web pages
  --against FILE                  clean: leave out texts with 13 words in a row of this file's
                                  rows (JSONL, CSV, ...; may be repeated); --keep-contaminated
  --json                          audit, show, clean: the result as JSON
  --config-dir DIR                more conf folders
  --root DIR                      folder of run folders

examples
  longhaul data prepare data=text_files 'data.sources.files.paths=[corpus/*.txt]'
  longhaul data show first-run --row 3
  longhaul data clean data=jsonl 'data.sources.files.paths=[*.jsonl]' --to clean --near-copies
"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP, end="")
        return Exit.DONE
    verb, *rest = argv
    if verb not in _VERBS:
        raise Refused(f"longhaul data has no verb {verb!r}; there is {', '.join(_VERBS)}")
    if {"-h", "--help"} & set(rest):
        print(_HELP, end="")
        return Exit.DONE
    parser = argparse.ArgumentParser(prog=f"longhaul data {verb}", add_help=False)
    parser.add_argument("--config-dir", action="append", default=[])
    parser.add_argument("--root", default=None)
    given, others = parser.parse_known_args(rest)
    settings, options = split(others)
    config = resolved(settings, config_dirs=given.config_dir, root=given.root)
    with config_file(config.model_dump(mode="json")) as path:
        return compute(_VERBS[verb], [str(path), *options])
