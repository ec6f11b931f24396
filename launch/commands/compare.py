"""longhaul compare RUN RUN...: what runs came to, and what differs in their plans."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from launch.report.differing import Differing, differing
from launch.report.facts import RunFacts, read_facts
from launch.report.page import compared_page
from launch.report.write import write_page
from launch.run.run_folder import DEFAULT_ROOT, find
from launch.run.standing import standing
from launch.table import show
from trainer.errors import Refused
from trainer.records.redact import redactor_of

_EPILOG = "example: longhaul compare small large --to both.html"
_WIDEST = 60  # of a value in the terminal


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="longhaul compare",
        description="Runs beside each other: what they came to, and the numbers of their plans "
        "that differ. --to FILE writes a page with their curves over each other.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", nargs="+", help="two or more: names or paths")
    parser.add_argument("--to", metavar="FILE", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder of run folders")
    given = parser.parse_args(argv)
    runs = {find(name, root=Path(given.root)).root.resolve() for name in given.run}
    if len(runs) < 2:
        raise Refused("compare takes two runs or more, each once: longhaul compare RUN RUN")
    facts = {}
    for name in given.run:
        run = find(name, root=Path(given.root))
        facts[name if run.name in facts else run.name] = read_facts(run, standing(run).job)
    found = differing({name: one.plan for name, one in facts.items()})
    redactor = redactor_of(os.environ)
    if given.json:
        runs_of = [_row(name, one) for name, one in facts.items()]
        differs = [asdict(one) for one in found]
        show([{"runs": runs_of, "differs": redactor.values(differs)}], as_json=True)
    else:
        show([_row(name, one) for name, one in facts.items()], as_json=False)
        print()
        shown = redactor.values([_line(one, list(facts)) for one in found])
        show(shown, as_json=False, empty="no setting and no number of their plans differs")
    if given.to is not None:
        write_page(given.to, redactor.text(compared_page(facts)))
        if not given.json:
            print(f"\n{given.to}")
    return 0


def _row(name: str, facts: RunFacts) -> dict[str, object]:
    status = facts.status
    return {
        "run": name,
        "state": status.state,
        "step": status.step,
        "loss": status.loss,
        "tokens_seen": facts.curves.last("tokens_seen") if facts.curves.steps else None,
        "tokens_per_second": status.tokens_per_second,
        "goodput": status.goodput,
        "rank_hours": round(facts.rank_seconds / 3600, 4),
        "attempts": len(facts.attempts),
    }


def _line(one: Differing, names: list[str]) -> dict[str, object]:
    values = [v if len(v) <= _WIDEST else v[: _WIDEST - 1] + "\u2026" for v in one.values]
    return {"differs": one.key, **dict(zip(names, values, strict=True))}
