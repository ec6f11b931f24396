"""What is done to checkpoints on disk: D3 damaged, D9 pointed at wrongly, D35 made by an enemy."""

from __future__ import annotations

import shutil

from launch.drills.bench import Bench, Result

_MODULE = "trainer.verify.damages"


def damaged_files(bench: Bench) -> Result:
    """D3. Every damage is noticed before anything is loaded from it, and the step before is."""
    found = _scored(bench, "files", "--count", str(200 if bench.short else 1000))
    tried, noticed = sum(found["tried"].values()), sum(found["noticed"].values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(found["tried"].items()))
    said = f"{noticed} of {tried} noticed, quarantined and stepped back from ({kinds})"
    return Result(tried, said, tuple(found["silent"]), {"damaged": tried, "noticed": noticed})


def pointers(bench: Bench) -> Result:
    """D9. The pointer is a hint: whatever it says, the newest whole step is loaded."""
    found = _scored(bench, "pointers")
    tried, right = sum(found["tried"].values()), sum(found["noticed"].values())
    said = f"{right} of {tried} contents of the pointer: the newest whole step was loaded"
    return Result(tried, said, tuple(found["silent"]))


def malicious(bench: Bench) -> Result:
    """D35. Checkpoints made by an enemy: nothing runs, hangs, takes memory or is loaded."""
    run = str(bench.site.run(bench.reference.name).root)
    scratch = str(bench.site.folder / "scratch")
    found = bench.site.json_of("trainer.verify.malice", run, scratch)
    tried, right = sum(found["tried"].values()), sum(found["noticed"].values())
    said = f"canary absent {tried} of {tried}; {right} refused or stepped back from"
    return Result(tried, said, tuple(found["silent"]), {"malicious": tried})


def _scored(bench: Bench, what: str, *options: str) -> dict[str, dict[str, int]]:
    run = str(bench.site.run(bench.reference.name).root)
    scratch = bench.site.folder / "scratch"
    options = (*options, "--seed", str(bench.seed)) if what == "files" else options
    try:
        found: dict[str, dict[str, int]] = bench.site.json_of(
            _MODULE, what, run, str(scratch), *options
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found
