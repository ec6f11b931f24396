"""longhaul replay RUN: a process of its own (trainer/commands/replay.py) with its own help."""

from __future__ import annotations

from launch.compute import compute, with_targets


def main(argv: list[str]) -> int:
    return compute("trainer.commands.replay", with_targets(argv, count=1))
