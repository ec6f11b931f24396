"""longhaul evaluate RUN: a process of its own (trainer/commands/evaluate.py)."""

from __future__ import annotations

from launch.compute import compute, with_targets

_EXAMPLE = "longhaul evaluate first-run"


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(f"example: {_EXAMPLE}\n", flush=True)
        return compute("trainer.commands.evaluate", ["--help"])
    return compute("trainer.commands.evaluate", with_targets(argv, count=1))
