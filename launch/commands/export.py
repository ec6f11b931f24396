"""longhaul export RUN: a process of its own (trainer/commands/export.py) with its own help."""

from __future__ import annotations

from launch.compute import compute, with_targets


def main(argv: list[str]) -> int:
    return compute("trainer.commands.export", with_targets(argv, count=1))
