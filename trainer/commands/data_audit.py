"""longhaul data audit: a process of its own, which is given the settings as a file.

Counts what is in the stores (documents, tokens, duplicates) and what steps A..B consume.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trainer.config.schema import Config
from trainer.errors import LonghaulError
from trainer.records.json_file import read_json


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul data audit",
        usage="longhaul data audit [RUN] [key=value ...] [--first-step A --last-step B] [--json]",
    )
    parser.add_argument("config", type=Path, help="JSON of a resolved configuration")
    parser.add_argument("--first-step", type=int, default=1, help="from 1")
    parser.add_argument("--last-step", type=int, help="default: steps.total")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    config = Config.model_validate(read_json(given.config))
    last = given.last_step if given.last_step is not None else config.steps.total
    if not 1 <= given.first_step <= last:
        parser.error(f"the steps {given.first_step}..{last} are none; steps count from 1")
    try:
        from trainer.data.inspect import audit
        from trainer.data.prepare import prepare

        stores = prepare(config, log=lambda line: print(line, file=sys.stderr))
        found = audit(config, stores, first_step=given.first_step, last_step=last)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    print(json.dumps(found, indent=2) if given.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    lines = []
    for name, s in found["sources"].items():
        for split in ("train", "held_out"):
            counts = f"{s[split]['documents']:,} documents, {s[split]['tokens']:,} tokens"
            lines.append(f"{name} {split}: {counts}")
        lines.append(
            f"{name}: {s['source_bytes']:,} bytes of text, {s['duplicates']:,} duplicates, "
            f"{s['leaked']:,} held-out documents also trained on, "
            f"{s['skipped_documents']:,} left out, {s['unigram_entropy_nats']:.3f} nats a token"
        )
    steps = found["steps"]
    lines.append(f"steps {steps['first']:,} to {steps['last']:,} consume")
    for name, s in steps["sources"].items():
        lines.append(
            f"  {name}: {s['rows']:,} rows ({s['share']:.1%}), {s['different_rows']:,} different, "
            f"{s['tokens']:,} tokens"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
