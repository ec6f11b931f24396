"""longhaul generate RUN: a process of its own (trainer/commands/generate.py)."""

from __future__ import annotations

from launch.compute import compute, with_targets

_EXAMPLE = "longhaul generate first-run --prompt 'def main('"


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(f"example: {_EXAMPLE}\n", flush=True)
        return compute("trainer.commands.generate", ["--help"])
    return compute("trainer.commands.generate", with_targets(argv, count=1))
