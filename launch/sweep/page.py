"""sweep.html: what a sweep has found, as a page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from launch.sweep.figures import history, parallel, shown, slices
from launch.sweep.journal import Trial
from launch.sweep.space import Space
from launch.sweep.table import SweepStatus, headline
from trainer.config.sections.sweep import SweepSection
from trainer.drawing.curves import bars_figure, number_text
from trainer.drawing.html import svg
from trainer.drawing.shapes import Drawing

_STYLE = """
body{font-family:sans-serif;margin:2em auto;max-width:1340px;padding:0 1em;color:#1e1e1e}
table{border-collapse:collapse} td,th{padding:2px 14px 2px 0;text-align:left;vertical-align:top}
tr.best td{font-weight:bold} .figures{display:flex;flex-wrap:wrap;gap:10px}
svg{max-width:100%;height:auto}
"""


def sweep_page(
    status: SweepStatus, trials: Mapping[int, Trial], section: SweepSection, space: Space
) -> str:
    from launch.sweep.optuna_sampler import importances

    weights = importances(section, space, list(trials.values()))
    return page(status, figures(trials, section, space, weights))


def figures(
    trials: Mapping[int, Trial],
    section: SweepSection,
    space: Space,
    weights: Mapping[str, float],
) -> list[Drawing]:
    """Of the first metric. `weights`: how much each dimension matters, together 1; may be empty."""
    metric, goal = section.metrics[0], section.goals[0]
    found = shown(trials, goal)
    if not found:
        return []
    drawn = [history(found, metric, goal), parallel(found, space, metric)]
    if weights:
        order = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))
        rows = [
            (name.rpartition(".")[2], weight, f"{weight:.0%}  {name}") for name, weight in order
        ]
        drawn.append(bars_figure(f"what {metric} depends on (PED-ANOVA)", rows))
    return [*drawn, *slices(found, space, metric)]


def page(status: SweepStatus, drawings: Sequence[Drawing]) -> str:
    """Pure."""
    heads = ["trial", "state", *status.metrics, "settings", "gpu_hours", "why"]
    rows = "\n".join(
        f"<tr{' class=best' if row['best'] else ''}>"
        + "".join(f"<td>{escape(_text(row[head]))}</td>" for head in heads)
        + "</tr>"
        for row in status.rows
    )
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    drawn = "\n".join(map(svg, drawings)) or "no trial has reported a value yet"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(status.sweep)}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(status.sweep)}</h1>\n<p>{escape(headline(status))}</p>\n"
        f'<div class="figures">{drawn}</div>\n<table>\n<tr>{top}</tr>\n{rows}\n</table>\n'
        "</body></html>\n"
    )


def _text(value: object) -> str:
    return number_text(value) if isinstance(value, float) else "" if value is None else str(value)
