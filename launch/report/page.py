"""Facts as one HTML page that needs nothing but itself: no script, no file, no network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from launch.report.differing import differing, flat
from launch.report.facts import AttemptFacts, RunFacts, score_names
from launch.report.figures import curves_of, overlaid, phases, waterfall
from launch.table import age_text
from trainer.drawing.curves import number_text
from trainer.drawing.html import svg
from trainer.drawing.shapes import Drawing

_STYLE = """
body{font-family:sans-serif;margin:2em auto;max-width:1340px;padding:0 1em;color:#1e1e1e}
h1{margin-bottom:0} h2{margin-top:2em;border-bottom:1px solid #ccc} .why{color:#666}
table{border-collapse:collapse} td,th{padding:2px 14px 2px 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right} tr:nth-child(even) td{background:#f6f6f6}
.tiles{display:flex;flex-wrap:wrap;gap:1.5em;margin:1em 0} .tiles b{display:block;font-size:1.4em}
.figures{display:flex;flex-wrap:wrap;gap:10px} svg{max-width:100%;height:auto}
pre{white-space:pre-wrap;background:#f6f6f6;padding:8px} summary{cursor:pointer}
"""


def run_page(facts: RunFacts) -> str:
    """One run: what it came to, where its time went, and what it was made of."""
    status = facts.status
    parts = [
        f"<h1>{escape(status.run)}</h1>",
        f'<p class="why">{escape(status.state)}{_why(status.why)}</p>',
        _tiles(_headline(facts)),
        _section("Curves", _figures(curves_of(facts))),
        _section("Where the time went", _figures(_spent(facts))),
        _section("Attempts", _table(_ATTEMPT_HEADS, map(_attempt_row, facts.attempts))),
        _section("Changes on the way", _changes(facts.attempts)),
        _section("Held out", _scores(facts)),
        _section("Samples", _samples(facts.samples)),
        _section("Data", _table(_STORE_HEADS, _stores(facts))),
        _section("Numbers that were not applied", _guarded(facts.guarded)),
        _section("Settings", _settings(facts.plan)),
        _section("Environment", _table(("what", "version"), _versions(facts))),
    ]
    return _page(status.run, parts)


def compared_page(runs: Mapping[str, RunFacts]) -> str:
    """Runs over each other: curves, what they came to, and the settings that differ."""
    found = differing({name: facts.plan for name, facts in runs.items()})
    rows = [(name, *(value for _, value in _headline(facts))) for name, facts in runs.items()]
    heads = ("run", *(name for name, _ in _headline(next(iter(runs.values())))))
    parts = [
        f"<h1>{escape(', '.join(runs))}</h1>",
        _section("What they came to", _table(heads, rows)),
        _section("Curves", _figures(overlaid(runs))),
        _section(
            "What differs",
            _table(("setting", *runs), ((one.key, *one.values) for one in found))
            or "<p>No setting and no number of the plan.</p>",
        ),
        _section("Where the time went", _figures([waterfall(f.account) for f in runs.values()])),
    ]
    return _page(", ".join(runs), parts)


def _headline(facts: RunFacts) -> list[tuple[str, str]]:
    status, curves = facts.status, facts.curves
    seen = curves.last("tokens_seen") if curves.steps else None
    best = min((value for _, value in curves.points("loss")), default=None)
    return [
        ("step", f"{status.step:,}" + (f" of {status.total:,}" if status.total else "")),
        ("loss", _text(curves.last("loss") if curves.steps else None)),
        ("lowest loss", _text(best)),
        ("tokens seen", _text(seen)),
        ("tokens per second", _text(status.tokens_per_second)),
        ("goodput", f"{facts.account.goodput:.1%}"),
        ("wall time", age_text(facts.account.wall_s)),
        ("rank hours", f"{facts.rank_seconds / 3600:.3g}"),
        ("attempts", str(len(facts.attempts))),
        ("parameters", _text(facts.plan.get("num_parameters"))),
        ("ranks", str(facts.plan.get("world_size", "-"))),
    ]


def _spent(facts: RunFacts) -> list[Drawing]:
    of_a_step = phases(facts.curves)
    return [waterfall(facts.account), *([of_a_step] if of_a_step else [])]


_ATTEMPT_HEADS = ("attempt", "began", "took", "ranks", "after step", "how it ended", "cause")


def _attempt_row(one: AttemptFacts) -> Sequence[str]:
    took = age_text(one.ended - one.started) if one.started and one.ended else "-"
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(one.started)) if one.started else "-"
    return (
        str(one.number), began, took, str(one.world_size or "-"),
        "-" if one.from_step is None else str(one.from_step), one.why, one.cause or "",
    )  # fmt: skip


def _changes(attempts: Iterable[AttemptFacts]) -> str:
    rows = [
        (str(one.number), str(c.get("where", "")), _short(c.get("old")), _short(c.get("new")),
         str(c.get("meaning", "")))
        for one in attempts if one.descent is not None for c in one.descent.changes
    ]  # fmt: skip
    return _table(("attempt", "setting", "was", "is", "what follows"), rows)


def _scores(facts: RunFacts) -> str:
    names = score_names(facts.scores)
    rows = [
        (str(step), *(_text(values.get(name)) for name in names)) for step, values in facts.scores
    ]
    return _table(("step", *names), rows[-50:])


def _samples(samples: Iterable[tuple[int, str, str]]) -> str:
    return "".join(
        f"<p>step {step}</p><pre><b>{escape(prompt)}</b>{escape(text)}</pre>"
        for step, prompt, text in samples
    )


_STORE_HEADS = ("source", "weight", "tokens to train on", "tokens held out", "epochs of it so far")


def _stores(facts: RunFacts) -> list[Sequence[str]]:
    stores = facts.plan.get("stores") or []
    seen = facts.curves.last("tokens_seen") if facts.curves.steps else None
    total = sum(float(store.get("weight", 0)) for store in stores) or 1.0
    rows: list[Sequence[str]] = []
    for store in stores:
        tokens = store.get("train_tokens") or 0
        share = float(store.get("weight", 0)) / total
        epochs = f"{seen * share / tokens:.3g}" if seen and tokens else "-"
        held_out = _text(store.get("held_out_tokens"))
        rows.append((str(store.get("source")), f"{share:.3g}", _text(tokens), held_out, epochs))
    return rows


def _guarded(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [(str(x.get("step")), str(x.get("action")), str(x.get("said"))) for x in lines]
    return _table(("step", "what was done", "why"), rows[-100:])


def _settings(plan: Mapping[str, Any]) -> str:
    rows = [(key, _short(value)) for key, value in flat(plan.get("config") or {}).items()]
    table = _table(("setting", "value"), rows)
    return f"<details><summary>{len(rows)} settings</summary>{table}</details>" if rows else ""


def _versions(facts: RunFacts) -> list[Sequence[str]]:
    descents = [one.descent for one in facts.attempts if one.descent is not None]
    versions = dict(descents[-1].versions) if descents else {}
    device = facts.plan.get("device")
    return [*versions.items(), *([("device", str(device))] if device else [])]


def _page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _figures(drawings: Iterable[Drawing]) -> str:
    made = "\n".join(svg(drawing) for drawing in drawings)
    return f'<div class="figures">{made}</div>' if made else ""


def _tiles(pairs: Iterable[tuple[str, str]]) -> str:
    tiles = "".join(f"<div>{escape(name)}<b>{escape(value)}</b></div>" for name, value in pairs)
    return f'<div class="tiles">{tiles}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    ]
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    return f"<table>\n<tr>{top}</tr>\n" + "\n".join(lines) + "\n</table>" if lines else ""


def _why(text: str) -> str:
    return f": {escape(text)}" if text else ""


def _text(value: Any) -> str:
    return number_text(float(value)) if isinstance(value, (int, float)) else "-"


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else text[:199] + "\u2026"
