"""longhaul replay RUN [--step N]: make a step that went wrong again, and say what caused it.

One process, twice, from the last checkpoint before it (and once in fp32). One of three causes:
  data      some rows are far off: leave them out, or mend the source
  numeric   it happens again with these rows and weights: precision, learning rate
  hardware  it does not happen again: some rank computed or held another value

Exit codes: 0 data or numeric, 76 hardware, 2 nothing to replay.
example: longhaul replay first-run --step 1234
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from trainer.commands.arguments import defaults_of, trained_parser
from trainer.commands.ending import ended
from trainer.errors import Exit, Refused
from trainer.records.run_files import RunFiles

if TYPE_CHECKING:
    from trainer.verify.cause import Finding, Repetition
    from trainer.verify.replay import Replay

_MOST_ROWS = 8  # shown


def main(argv: list[str] | None = None) -> int:
    parser = trained_parser(
        "replay", __doc__, path="a run", step="which incident; the last one if not given"
    )
    parser.add_argument("--max-steps", type=int, default=200, help="to make again before it")
    given = parser.parse_args(argv)
    return ended(lambda: _replay(given))


def _replay(given: argparse.Namespace) -> Exit:
    run = RunFiles(given.path.resolve())
    step = _chosen(run, given.step)
    from trainer.verify.cause import cause_of
    from trainer.verify.replay import replay

    done = replay(run, step, most_steps=given.max_steps, log=_say, defaults=defaults_of(given))
    found = cause_of(done.evidence)
    if given.json:
        print(json.dumps(_as_json(done, found), allow_nan=False))
    else:
        _show(done, found)
    return Exit.FAILED if found.cause == "hardware" else Exit.DONE


def _chosen(run: RunFiles, step: int | None) -> int:
    """Raises: Refused if there is no such incident."""
    from trainer.guard.incident import incident_steps

    steps = incident_steps(run.incidents)
    if not steps:
        raise Refused(
            f"{run.name} has no incidents: no step's numbers were wrong, or guard.max_incidents=0"
        )
    if step is not None and step not in steps:
        listing = ", ".join(map(str, steps))
        raise Refused(f"{run.name} has no incident at step {step}; there is {listing}")
    return steps[-1] if step is None else step


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(done: Replay, found: Finding) -> None:
    shared, evidence = done.incident.shared, done.evidence
    print(f"step {done.incident.step} of attempt {shared['attempt']}: {shared['said']}")
    print(f"made again from step {done.base}, {len(evidence.rows)} rows\n")
    print(f"{'':24}{'loss':>14}{'gradient norm':>16}")
    named = [("recorded", evidence.recorded)]
    named += [(f"again, {shared['precision']}", one) for one in evidence.again]
    if evidence.in_fp32 is not None and evidence.in_fp32 not in evidence.again:
        named.append(("again, fp32", evidence.in_fp32))
    for name, one in named:
        print(f"{name:24}{one.loss:14.6g}{one.grad_norm:16.6g}")
    whose = "steps before" if evidence.usual_was else "other rows"
    print(f"{whose:24}{evidence.usual:14.6g}")
    for row in found.rows[:_MOST_ROWS]:
        print(f"{f'sample {row.sample}':24}{row.loss:14.6g}  {row.origin}")
    if len(found.rows) > _MOST_ROWS:
        print(f"... and {len(found.rows) - _MOST_ROWS} rows more")
    print(f"\ncause: {found.cause}. {found.why}")


def _as_json(done: Replay, found: Finding) -> dict[str, Any]:
    evidence = done.evidence
    return {
        "step": done.incident.step,
        "from_step": done.base,
        "cause": found.cause,
        "why": found.why,
        "rows": [
            {"sample": r.sample, "loss": _plain(r.loss), "origin": r.origin} for r in found.rows
        ],
        "ranks": list(found.ranks),
        "recorded": _numbers(evidence.recorded),
        "again": [_numbers(one) for one in evidence.again],
        "in_fp32": _numbers(evidence.in_fp32) if evidence.in_fp32 else None,
        "usual_loss": _plain(evidence.usual),
    }


def _numbers(one: Repetition) -> dict[str, float | None]:
    return {"loss": _plain(one.loss), "grad_norm": _plain(one.grad_norm)}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    raise SystemExit(main())
