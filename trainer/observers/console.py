"""Progress for the person who started the run: a live line on a terminal, plain lines elsewhere.

A terminal shows one panel that stays: bar, step, time left, loss, rates, last evaluation and save.
Without one (a pipe, a log file) each logged step is a line of its own, flushed at once.
"""

from __future__ import annotations

import sys
import time
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from trainer.records.sizes import size_text
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport

_REFRESH_HZ = 4.0
_SMOOTHING = 0.9  # of seconds a step, for the time left


def make_console(
    *, name: str, first_step: int, total_steps: int, headline: str, out: IO[str] | None = None
) -> PlainLines | LivePanel:
    """`headline` is one line about the run, printed at once."""
    out = out or sys.stdout
    if out.isatty():
        return LivePanel(name, first_step, total_steps=total_steps, headline=headline, out=out)
    return PlainLines(first_step, total_steps, headline=headline, out=out)


class PlainLines:
    """One line a report."""

    def __init__(self, first_step: int, total_steps: int, *, headline: str, out: IO[str]) -> None:
        self._out = out
        self._total = total_steps
        self._pace = _Pace(first_step - 1, total_steps)
        self._say(headline)

    def on_step(self, report: StepReport) -> None:
        step = f"step {report.step:>{len(str(self._total))}}/{self._total}"
        left = f"left {_duration(self._pace.left_s(report.step))}"
        self._say("  ".join((step, _learning(report), _machine(report), left)))

    def on_eval(self, report: EvalReport) -> None:
        if report.values:
            self._say(f"eval at step {report.step}: {_values(report)} ({report.seconds:.1f} s)")
        for prompt, continuation in report.samples:
            self._say(f"sample at step {report.step}:\n{prompt}{continuation}\n")

    def on_save(self, report: SaveReport) -> None:
        if report.succeeded:  # of others a warning has been printed, with what follows from it
            self._say(_saved(report))

    def on_upload(self, report: UploadReport) -> None:
        self._say(_uploaded(report))

    def on_guard(self, report: GuardReport) -> None:
        self._say(_guarded(report))

    def close(self) -> None:
        """Every line was flushed when it was written."""

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class LivePanel:
    """A panel that is redrawn in place; evaluations and failed saves scroll above it."""

    def __init__(
        self, name: str, first_step: int, *, total_steps: int, headline: str, out: IO[str]
    ) -> None:
        self._pace = _Pace(first_step - 1, total_steps)
        self._last: StepReport | None = None
        self._eval = self._save = "-"
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            expand=True,
        )
        self._task = self._bar.add_task(name, total=total_steps, completed=first_step - 1, left="?")
        console = Console(file=out)
        console.print(headline, highlight=False)
        self._live = Live(
            self._draw(),
            console=console,
            refresh_per_second=_REFRESH_HZ,
            redirect_stderr=False,  # that is the rank's log
        )
        self._live.start()

    def on_step(self, report: StepReport) -> None:
        self._last = report
        left = _duration(self._pace.left_s(report.step))
        self._bar.update(self._task, completed=report.step, left=left)
        self._live.update(self._draw())

    def on_eval(self, report: EvalReport) -> None:
        if report.values:
            self._eval = f"step {report.step}: {_values(report)}"
        for prompt, continuation in report.samples:
            text = Text(prompt) + Text(continuation, style="bold")
            self._live.console.print(Panel(text, title=f"sample at step {report.step}"))
        self._live.update(self._draw())

    def on_save(self, report: SaveReport) -> None:
        self._save = _saved(report)
        self._live.update(self._draw())

    def on_upload(self, report: UploadReport) -> None:
        self._live.console.print(_uploaded(report), highlight=False, markup=False)

    def on_guard(self, report: GuardReport) -> None:
        self._live.console.print(_guarded(report), highlight=False, markup=False)

    def close(self) -> None:
        self._live.update(self._draw(), refresh=True)
        self._live.stop()

    def _draw(self) -> Group:
        now = Text("waiting for the first step", style="dim")
        if self._last is not None:
            now = Text(f"{_learning(self._last)}\n{_machine(self._last)}")
        last = Text(f"last eval  {self._eval}\nlast save  {self._save}", style="dim")
        return Group(self._bar, now, last)


class _Pace:
    """Seconds a step, smoothed, from the wall clock: saves and evaluations count as well."""

    def __init__(self, done: int, total: int) -> None:
        self._done = done
        self._total = total
        self._at = time.monotonic()
        self._per_step: float | None = None

    def left_s(self, step: int) -> float:
        now = time.monotonic()
        if step > self._done:
            fresh = (now - self._at) / (step - self._done)
            old = self._per_step if self._per_step is not None else fresh
            self._per_step = _SMOOTHING * old + (1 - _SMOOTHING) * fresh
            self._done, self._at = step, now
        return (self._per_step or 0.0) * (self._total - step)


def _learning(report: StepReport) -> str:
    skipped = "" if report.applied else "  update skipped"
    return (
        f"loss {report.loss:.4f}  lr {report.learning_rate:.2e}  "
        f"norm {report.grad_norm:.2f}{skipped}"
    )


def _machine(report: StepReport) -> str:
    waiting = 100 * report.data_s / report.step_s if report.step_s else 0.0
    return (
        f"{report.tokens_per_second:,.0f} tokens/s  MFU {100 * report.mfu:.1f} %  "
        f"data wait {waiting:.1f} %  {report.memory_bytes / 2**30:.2f} GiB"
    )


def _values(report: EvalReport) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in report.values.items())


def _uploaded(report: UploadReport) -> str:
    skipped = f"; {report.skipped} left out so far: they came too fast" if report.skipped else ""
    if not report.succeeded:
        return f"UPLOAD FAILED: {report.problem}{skipped}"
    size = size_text(report.bytes)
    return f"uploaded step {report.step}: {size} to {report.url} in {report.seconds:.1f} s{skipped}"


def _saved(report: SaveReport) -> str:
    if report.skipped:
        return report.problem
    if not report.succeeded:
        return f"SAVE AT STEP {report.step} FAILED: {report.problem}"
    size = size_text(report.bytes)
    waited = f" ({report.waited_s:.2f} s of it for a free buffer)" if report.waited_s > 0.01 else ""
    then = f"; from now on {report.save_every_why}" if report.save_every_why else ""
    return (
        f"saved step {report.step}: {size} in {report.write_s:.2f} s, "
        f"training stood still {report.stall_s:.2f} s{waited}{then}"
    )


def _guarded(report: GuardReport) -> str:
    what = {"log": "SPIKE", "skip": "STEP SKIPPED", "rewind": "BACK"}[report.action]
    return f"{what} at step {report.step}: {report.said}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
