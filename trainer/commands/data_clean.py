"""longhaul data clean: a corpus written again, one JSONL file a source, and what was left out.

    FOLDER/NAME.jsonl       {"text": ...}, the documents of data.sources.NAME that stay, in order
    FOLDER/removed.jsonl    {"source", "document", "why", "detail", "begins"}: every one that goes
    FOLDER/report.json      counts, and the rows of each evaluation file that the corpus has

Documents are counted from 0 over all sources, in their order.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainer.commands.ending import ended
from trainer.config.schema import Config
from trainer.config.sections.data import DataSection
from trainer.errors import DataError, Exit, Refused
from trainer.records.json_file import read_json, write_json

_REMOVED = "removed.jsonl"
_BEGINS = 200  # characters of a removed text that are shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul data clean",
        usage="longhaul data clean [RUN] [key=value ...] --to FOLDER [--near-copies] [--quality] "
        "[--against FILE ...] [--keep-contaminated] [--json]",
    )
    parser.add_argument("config", type=Path, help="JSON of a resolved configuration")
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument("--near-copies", action="store_true")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--against", type=Path, action="append", default=[])
    parser.add_argument("--keep-contaminated", action="store_true", help="count them only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    return ended(lambda: _clean(given))


def _clean(given: argparse.Namespace) -> Exit:
    from trainer.data.clean import Wanted, judged
    from trainer.data.contamination import Evaluations

    config = Config.model_validate(read_json(given.config))
    data = config.data
    if not isinstance(data, DataSection):
        raise Refused("data clean is for text; of labelled examples longhaul data audit says more")
    if len({*map(_file_of, data.sources), _REMOVED}) <= len(data.sources):
        raise Refused(f"data.sources: names must differ as file names, and from {_REMOVED}")
    if given.to.exists():
        raise Refused(f"{given.to} exists already; name a new folder with --to")
    sets = {str(path): _texts(path) for path in given.against}
    evaluations = Evaluations(sets) if sets else None
    wanted = Wanted(
        quality=given.quality,
        near_copies=given.near_copies,
        evaluations=evaluations,
        keep_contaminated=given.keep_contaminated,
    )
    trust = config.run.trust
    verdict = judged((text for _, text in _documents(data, trust, "judged")), wanted)
    if not verdict.kept:
        raise DataError(f"none of {verdict.documents:,} documents would stay; nothing is written")
    report: dict[str, Any] = {
        "documents": verdict.documents,
        "kept": verdict.kept,
        "left_out": verdict.counts(),
        "rules_broken": verdict.rules(),
        "contaminated": verdict.contaminated,
        "evaluations": {
            name: {"rows": found.rows, "too_short": found.too_short, "in_corpus": list(found.found)}
            for name, found in (evaluations.overlaps() if evaluations else {}).items()
        },
    }
    _write(given.to, data, trust, verdict, report)
    print(json.dumps(report) if given.json else _as_text(report, given.to))
    return Exit.DONE


def _documents(data: DataSection, trust: tuple[str, ...], what: str) -> Iterator[tuple[str, str]]:
    """(source, text) of every source, one after another, with a line of progress."""
    from trainer.data.progress import Progress
    from trainer.data.sample import total_bytes
    from trainer.data.sources import Rejected, documents

    for name, source in data.sources.items():
        progress = Progress(f"{name} {what}", total_bytes=total_bytes(source))
        done = 0
        for text in documents(source, trust=trust, rejected=Rejected(source=name)):
            yield name, text
            done += len(text.encode())
            progress.show(done)
        progress.show(done, last=True)


def _write(
    to: Path, data: DataSection, trust: tuple[str, ...], verdict: Any, report: dict[str, Any]
) -> None:
    """All of it in a folder beside, which then gets its name."""
    incoming = to.with_name(f".{to.name}.{os.urandom(4).hex()}.incoming")
    incoming.mkdir(mode=0o700, parents=True)
    try:
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((incoming / _file_of(name)).open("w", encoding="utf-8"))
                for name in data.sources
            }
            removed = stack.enter_context((incoming / _REMOVED).open("w", encoding="utf-8"))
            for number, (name, text) in enumerate(_documents(data, trust, "written")):
                if (gone := verdict.gone.get(number)) is None:
                    files[name].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    continue
                row = {"source": name, "document": number, "why": gone.why, "detail": gone.detail}
                row["begins"] = text[:_BEGINS]
                removed.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number + 1 != verdict.documents:
                raise DataError("the corpus changed while it was read; run the command again")
        write_json(incoming / "report.json", report)
        incoming.rename(to)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise


def _file_of(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", source) + ".jsonl"


def _texts(path: Path) -> Iterator[str]:
    """Every row's texts, one behind the other. Raises: DataError naming file and row."""
    from trainer.config.sections.examples import RecordsSource
    from trainer.data.formats.detect import format_of
    from trainer.data.formats.table import READERS

    if not path.is_file():
        raise Refused(f"--against {path} is no file")

    def stop(reason: str) -> None:
        raise DataError(reason)

    source = RecordsSource(paths=(str(path),))
    for row in READERS[format_of(source, [path])](source, path, stop):
        yield " ".join(value for value in row.values.values() if isinstance(value, str))


def _as_text(report: dict[str, Any], to: Path) -> str:
    lines = [f"{report['kept']:,} of {report['documents']:,} documents stay, in {to}"]
    lines += [f"  {count:>10,}  {why}" for why, count in report["left_out"].items()]
    lines += [f"  {count:>10,}  quality: {rule}" for rule, count in report["rules_broken"].items()]
    for name, found in report["evaluations"].items():
        judged = found["rows"] - found["too_short"]
        lines.append(
            f"{name}: the corpus has a run of 13 words of {len(found['in_corpus']):,} of "
            f"{judged:,} rows ({found['too_short']:,} more are shorter)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
