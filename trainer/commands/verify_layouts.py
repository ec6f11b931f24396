"""Judge what `longhaul verify layouts` ran: every layout against an independent loop.

    python -m trainer.commands.verify_layouts RUN_FOLDER [--json]

Exit codes: 0 all layouts train alike, 78 one does not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from trainer.commands.ending import ended
from trainer.errors import Exit


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="longhaul verify layouts", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    given = parser.parse_args(argv)
    return ended(lambda: _judge(given.run_folder, as_json=given.json))


def _judge(folder: Path, *, as_json: bool) -> Exit:
    from trainer.plan import read_plan
    from trainer.records.json_file import read_lines
    from trainer.records.run_files import RunFiles
    from trainer.verify.compare import bounds_of, compare, reference_for, reference_from
    from trainer.verify.layouts import Layout
    from trainer.verify.rank import RESULTS

    plan = read_plan(RunFiles(folder).attempt(1).plan)
    lines = list(read_lines(folder / RESULTS))
    found = [(Layout(**line["layout"]), line["losses"]) for line in lines]
    where, bounds = folder / "layouts", bounds_of(plan)
    against = "an independent fp32 loop"
    kind = plan.config.task.kind
    if plan.config.precision.kind == "fp32" and kind == "causal_lm":
        references = {p: reference_for(plan, packing=p) for p in {x.packing for x, _ in found}}
    else:
        against = f"the plain engine on one rank, task={kind} in {plan.config.precision.kind}"
        references = {
            layout.packing: reference_from(layout, losses, folder=where)
            for layout, losses in found
            if layout.engine == "plain"
        }
    verdicts = [
        compare(references[layout.packing], layout, losses, folder=where, bounds=bounds)
        for layout, losses in found
    ]
    passed = all(v.passed for v in verdicts)
    if as_json:
        rows = [
            {"layout": v.layout.name, "loss": v.loss, "weights": v.weights, "passed": v.passed}
            for v in verdicts
        ]
        bound = {"loss": bounds[0], "weights": bounds[1]}
        print(json.dumps({"passed": passed, "against": against, "bounds": bound, "layouts": rows}))
    else:
        print(f"\n{plan.config.steps.total} steps against {against}")
        print(f"allowed: loss {bounds[0]:g}, weights {bounds[1]:g}\n")
        print(f"{'layout':32}{'loss':>10}{'weights':>10}")
        for v in verdicts:
            tail = "" if v.passed else "   DIFFERS"
            print(f"{v.layout.name:32}{v.loss:10.1e}{v.weights:10.1e}{tail}")
        print(
            "\nall layouts train alike" if passed else "\nlayouts differ: do not trust this setup"
        )
    return Exit.DONE if passed else Exit.STOP


if __name__ == "__main__":
    raise SystemExit(main())
