"""longhaul evaluate RUN: loss, perplexity and the task's own scores on the held-out split.

RUN may be a run, one of its checkpoints, or a folder made by longhaul export. One process: the
model must fit on it (during training, evaluation runs on all ranks: steps.eval_every). What there
is to see, a confusion matrix and scores by length, is put into the run's folder, under figures/.
--by COLUMN also scores the held-out examples in groups, by a column of their file (whom they speak
of, where they are from), and says how far the groups are apart.
--explain N says which tokens of held-out example N (from 0) its class rests on, and scores nothing.
--answers writes what the model says to held-out examples of chat or seq2seq, and scores it; --words
FILE also counts the answers that hold a word of a list (lines of a category, a tab and a word).
example: longhaul evaluate first-run --rows 512
         longhaul evaluate my-summaries --answers 100 --scores rouge,bleu --write said.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.arguments import add_average, defaults_of, trained_parser
from trainer.commands.ending import ended
from trainer.errors import Exit, Refused
from trainer.plan import RunPlan

if TYPE_CHECKING:
    from trainer.commands.groups import GroupScores


def main(argv: list[str] | None = None) -> int:
    parser = trained_parser("evaluate", __doc__)
    add_average(parser)
    parser.add_argument("--rows", type=int, default=256, help="held-out rows to score")
    parser.add_argument("--answers", type=int, default=0, help="held-out examples to answer")
    parser.add_argument("--scores", default=None, help="of answers: bleu,chrf,rouge,exact_match")
    parser.add_argument("--max-new-tokens", type=int, default=None, help="of an answer")
    parser.add_argument("--beams", type=int, default=1, help="1: the likeliest token each time")
    parser.add_argument("--write", type=Path, help="a new file for the answers, a JSON line each")
    parser.add_argument("--explain", type=int, metavar="N", help="tokens that example N rests on")
    parser.add_argument("--words", type=Path, help="a list of words that answers should not hold")
    parser.add_argument("--by", metavar="COLUMN", help="also score each group of this column apart")
    given = parser.parse_args(argv)
    return ended(lambda: _evaluate(given))


def _evaluate(given: argparse.Namespace) -> Exit:
    from trainer.commands.answers import answer, wish_of
    from trainer.commands.bytes_of_rows import bits_per_byte
    from trainer.commands.figures import write_figures
    from trainer.commands.groups import group_scores
    from trainer.commands.rows import held_out_rows
    from trainer.dist.device import choose_device
    from trainer.dist.world import Alone, Place
    from trainer.engine.model_setup import weight_dtype
    from trainer.evals.totals import total_scores
    from trainer.export.trained import load_model, open_trained, with_reference
    from trainer.tasks.base import values_of
    from trainer.tasks.table import has_reference, task_of

    started = time.perf_counter()
    trained = open_trained(
        given.path, step=given.step, defaults=defaults_of(given), average=given.average
    )
    wish = wish_of(given, trained.plan)
    batches = held_out_rows(trained.plan, given.rows)
    if not batches:
        raise Refused(_nothing_to_score(trained.plan, given.rows))
    device = choose_device(trained.plan.device, Place())
    dtype = weight_dtype(trained.plan.config.precision.kind)
    model = load_model(trained, dtype=dtype, device=device)
    if given.explain is not None:
        return _explain(given, trained.plan, model, device)
    if wish is not None:
        return answer(wish, trained, model, as_json=given.json)
    if has_reference(trained.plan.config.task):
        model = with_reference(model, trained.plan, dtype=dtype, device=device)
    task = task_of(trained.plan)
    totals = total_scores(Alone(device), task, model, batches, device=device)
    values = values_of(task, totals) | bits_per_byte(trained.plan, batches, loss=totals["loss"])
    result = {"step": trained.step, "terms": int(totals["terms"]), **values}
    groups = None
    if given.by is not None:
        wanted = {"column": given.by, "rows": given.rows, "device": device}
        groups = group_scores(trained.plan, task, model, **wanted)
    figures = write_figures(given.path, task, totals, step=trained.step)
    if given.json:
        print(json.dumps(result | (groups.as_json() if groups else {})))
        return Exit.DONE
    what = "tokens" if trained.plan.config.task.data == "text" else "terms"
    print(f"step {trained.step}, {result['terms']:,} held-out {what}")
    _show(values, groups, figures)
    print(f"  in {time.perf_counter() - started:.1f} s")
    return Exit.DONE


def _explain(given: argparse.Namespace, plan: RunPlan, model: Any, device: Any) -> Exit:
    from trainer.commands.explain import explained

    found = explained(plan, model, given.explain, device=device)
    if given.json:
        print(json.dumps(found.as_json()))
    else:
        found.show()
    return Exit.DONE


def _show(values: Mapping[str, float], groups: GroupScores | None, figures: Path | None) -> None:
    for name, value in values.items():
        print(f"  {name:16} {value:.4f}")
    if groups is not None:
        groups.show()
    if figures is not None:
        print(f"  figures in {figures}")


def _nothing_to_score(plan: RunPlan, rows: int) -> str:
    """Why there are no held-out rows, and what to do: trained text cannot be held out now."""
    from trainer.evals.none_held_out import MORE_DOCUMENTS, larger_fraction, why_none_is_held_out

    if rows < 1:
        return f"--rows {rows}: nothing is asked for; give 1 or more, as in --rows 256"
    name = plan.config.run.name
    why = why_none_is_held_out(plan)
    another = f"run.name={name}-evaluated {larger_fraction(plan)}"
    fix = f"Train another run with its settings and {another}"
    more = "" if not plan.config.data.held_out_fraction else f", or {MORE_DOCUMENTS}"
    return f"run {name} {why}. {fix}{more}"


if __name__ == "__main__":
    raise SystemExit(main())
