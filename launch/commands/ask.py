"""longhaul ask RUN FILE: a process of its own (trainer/commands/ask.py) with its own help."""

from __future__ import annotations

from launch.compute import compute_on_a_run


def main(argv: list[str]) -> int:
    return compute_on_a_run("trainer.commands.ask", argv)
