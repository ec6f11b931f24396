"""D39: what a background save stores, and writers that die."""

from __future__ import annotations

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, KILLED, to_the_end
from launch.drills.reference import STEPS
from launch.drills.runs import Site
from trainer.errors import Exit
from trainer.faultpoints import Fault
from trainer.records.manifest import MANIFEST_NAME, decode

_OF_WRITERS = ("save.file_written", "save.file_durable")
_OF_THE_FIRST = ("save.before_manifest", "save.before_rename", "save.before_pointer")


def background_saves(bench: Bench) -> Result:
    """D39. Step by step the same bytes as a synchronous save; a dead writer is a failed save."""
    compared, wrong = _compare(bench, steps=12 if bench.short else 50)
    deaths, more = _dead_writers(bench)
    said = f"{compared} saves equal to synchronous ones; {deaths} dead writers: 0 silent losses"
    return Result(compared + deaths, said, (*wrong, *more))


def _compare(bench: Bench, *, steps: int) -> tuple[int, list[str]]:
    site, wrong = bench.site, list[str]()
    every = (f"steps.total={steps}", "steps.save_every=1", f"checkpoint.keep_last={steps}")
    for name, how in (("d39-aside", "true"), ("d39-plain", "false")):
        said = site.train(name, *every, f"checkpoint.asynchronous={how}")
        if said.code != Exit.DONE:
            return 0, [f"{name} returned {said.code}: {said.err[-500:]}"]
    aside, plain = (_digests(site, name) for name in ("d39-aside", "d39-plain"))
    if plain.keys() != set(range(1, steps + 1)):
        wrong.append(f"{len(plain)} of {steps} synchronous saves are there")
    wrong += [f"step {s} was not saved in the background" for s in plain.keys() - aside.keys()]
    both = plain.keys() & aside.keys()
    wrong += [f"step {s} holds other bytes" for s in sorted(both) if plain[s] != aside[s]]
    return sum(plain[s] == aside[s] for s in both), wrong


def _digests(site: Site, name: str) -> dict[int, list[str]]:
    """By step, what identifies each rank's file: the checksum of the checksums of its data."""
    found = {}
    for path in site.run(name).checkpoints.glob(f"step-*/{MANIFEST_NAME}"):
        manifest = decode(path.read_bytes())
        found[manifest.step] = [file.digest for file in manifest.files]
    return found


def _dead_writers(bench: Bench) -> tuple[int, list[str]]:
    """A writer killed in each of its phases, and a rank while its writer writes."""
    site, name = bench.site, "d39-writers"
    places = [(point, rank) for point in _OF_WRITERS for rank in (0, 1)]
    places += [(point, 0) for point in _OF_THE_FIRST]
    if bench.short:
        places = places[:1]
    faults = [
        Fault(point, "kill", rank=rank, step=2 + 3 * n, token=site.token(f"d39-{n}"))
        for n, (point, rank) in enumerate(places)
    ]
    staged = Fault("save.staged", "kill", rank=1, step=STEPS - 2, token=site.token("d39-rank"))
    before = site.look(name)
    last = to_the_end(
        bench, name, [*faults, staged], "steps.save_every=1", "checkpoint.keep_last=3"
    )
    wrong = bench.judge(name, endings=[KILLED, DONE], before=before, last=last)
    failed = [s["step"] for s in site.saves(name) if not s["succeeded"]]
    for fault in faults:
        fired = site.fired(fault.token)
        if not fired:
            wrong.append(f"{fault.point} of rank {fault.rank} was never passed")
        # From the rename on the step is real, whoever dies afterwards.
        elif fault.point != "save.before_pointer" and not any(
            fired[0]["step"] <= step <= fired[0]["step"] + 1 for step in failed
        ):
            wrong.append(f"{fault.point}: the save of a dead writer was not said to have failed")
    return len(places) + 1, wrong
