"""longhaul data show: a process of its own, which is given the settings as a file.

Prints one row as the model sees it. Of text: position, document, token id, its text, and the label.
Of labelled examples: those that share the row, with what is learnt of them marked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trainer.commands.translating import translator_of
from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection
from trainer.errors import LonghaulError
from trainer.plan import StorePlan
from trainer.records.json_file import read_json


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul data show",
        usage="longhaul data show [RUN] [key=value ...] [--step S --row K | --sample N] [--json]",
    )
    parser.add_argument("config", type=Path, help="JSON of a resolved configuration")
    parser.add_argument("--sample", type=int, help="global sample index, from 0")
    parser.add_argument("--step", type=int, default=1, help="optimizer step, from 1")
    parser.add_argument("--row", type=int, default=0, help="row of the step's batch, from 0")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    config = Config.model_validate(read_json(given.config))
    sample = given.sample
    if sample is None:
        batch = config.batch.global_batch_size
        if given.step < 1 or not 0 <= given.row < batch:
            parser.error(f"--step counts from 1, and --row must be in 0..{batch - 1}")
        sample = (given.step - 1) * batch + given.row
    if sample < 0:
        parser.error("--sample counts from 0")
    try:
        from trainer.data.inspect import as_dict, shown_row
        from trainer.data.prepare import prepare

        stores = prepare(config, log=_say, translate=translator_of(config))
        if isinstance(config.data, ExamplesSection):
            return _examples(config, stores, sample=sample, as_json=given.json)
        row = shown_row(config, stores, sample=sample)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    if given.json:
        print(json.dumps(as_dict(row), indent=2))
        return 0
    print(f"sample {row.sample:,}: row {row.row:,} of {row.source}")
    print(f"{'position':>8} {'document':>9} {'id':>7}  {'token':<20} {'label':>7}")
    for t in row.tokens:
        label = "-" if t.label is None else str(t.label)
        print(f"{t.position:>8} {t.document:>9} {t.id:>7}  {t.text!r:<20} {label:>7}")
    return 0


def _examples(config: Config, stores: Sequence[StorePlan], *, sample: int, as_json: bool) -> int:
    from trainer.data.inspect_examples import shown_examples

    colour = sys.stdout.isatty() and not as_json
    found = shown_examples(config, stores, sample=sample, colour=colour)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(
        f"sample {found.sample:,}: row {found.row:,} of {found.source}, "
        f"{len(found.examples)} examples of {found.length} tokens together"
    )
    print("\n".join(found.examples))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
