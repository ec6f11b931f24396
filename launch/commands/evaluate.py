"""longhaul evaluate RUN: a process of its own (trainer/commands/evaluate.py) with its own help."""

from __future__ import annotations

from launch.compute import compute, with_targets


def main(argv: list[str]) -> int:
    return compute("trainer.commands.evaluate", with_targets(argv, count=1))
