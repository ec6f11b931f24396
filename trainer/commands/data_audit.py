"""longhaul data audit: a process of its own, which is given the settings as a file.

Of text: counts what is in the stores (documents, tokens, duplicates) and what steps A..B consume.
Of examples: what the gate before training finds, and examples as the model sees them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.commands.translating import translator_of
from trainer.config.schema import Config
from trainer.config.sections.example_data import ExamplesSection
from trainer.errors import Exit, LonghaulError
from trainer.records.json_file import read_json


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul data audit",
        usage="longhaul data audit [RUN] [key=value ...] [--first-step A --last-step B] "
        "[--show N] [--json]",
    )
    parser.add_argument("config", type=Path, help="JSON of a resolved configuration")
    parser.add_argument("--first-step", type=int, default=1, help="from 1")
    parser.add_argument("--last-step", type=int, help="default: steps.total")
    parser.add_argument("--show", type=int, default=3, help="examples to print; not of text")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    config = Config.model_validate(read_json(given.config))
    last = given.last_step if given.last_step is not None else config.steps.total
    if not 1 <= given.first_step <= last:
        parser.error(f"the steps {given.first_step}..{last} are none; steps count from 1")
    if isinstance(config.data, ExamplesSection):
        return _of_examples(config, config.data, show=given.show, as_json=given.json)
    try:
        from trainer.data.inspect import audit
        from trainer.data.prepare import prepare

        stores = prepare(config, log=_say, translate=translator_of(config))
        found = audit(config, stores, first_step=given.first_step, last_step=last)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    print(json.dumps(found, indent=2) if given.json else _text(found))
    return 0


def _of_examples(config: Config, data: ExamplesSection, *, show: int, as_json: bool) -> int:
    """The report, whatever it says; its exit code is that of a run that it would keep back."""
    from trainer.data.audit_gate import audited
    from trainer.data.audit_show import beginning
    from trainer.data.audit_text import as_text
    from trainer.data.prepare import prepare

    try:
        stores = prepare(config, log=_say, translate=translator_of(config))
        report = audited(config, data, stores)
        examples = beginning(Path(stores[0].path), count=show, colour=sys.stdout.isatty())
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return int(e.exit_code)
    allow = data.audit.allow
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print("\n".join([as_text(report, allow=allow), *examples]))
    return int(Exit.STOP if report.refused(allow=allow) else Exit.DONE)


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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
