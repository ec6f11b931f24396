"""`longhaul verify layouts`: the user's settings, shrunk, on every layout they imply.

    shrink -> prepare (child) -> one attempt a world size (real ranks) -> judge (child)

What runs in the ranks is trainer/verify/rank.py; what is compared, trainer/verify/compare.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.backends.local import LocalBackend
from launch.compute import compute
from launch.run.run_folder import create, new_attempt
from launch.stand import Standing, frozen_hash, plan_of
from launch.start import prepare, write_attempt
from launch.verify.shrink import has_own_task, shrunk
from trainer.config.schema import Config
from trainer.config.sections.training import CanonicalEngine, PlainEngine
from trainer.errors import Exit
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles

_RANKS = "trainer.verify.rank"
_WORLDS = (1, 2, 3)
_ACCUMULATIONS = (1, 2, 4)
_UNEVEN = 3  # on three ranks: 27 rows for 24, so three have weight zero


def verify_layouts(
    config: Config,
    folder: Path,
    *,
    steps: int,
    every_stage: bool,
    as_configured: bool,
    as_json: bool,
) -> int:
    """Exit code: 0 all layouts train alike, 78 one does not, others if ranks failed.

    `every_stage`: ZeRO 0 to 3 instead of the configured one. `as_configured`: in the configured
    precision against the plain engine, instead of in fp32 against an independent loop.
    """
    small = shrunk(config, folder, name="layouts", steps=steps, fp32=not as_configured)
    stores = prepare(small)
    if isinstance(stores, int):
        return stores
    values = small.model_dump(mode="json")
    run = create(Path(small.run.root), config=values, frozen_hash=frozen_hash(small))
    wanted = list(_layouts(small, every_stage=every_stage))
    for world in sorted({layout["world_size"] for layout in wanted}):
        resources = small.resources.model_copy(update={"ranks_per_node": world})
        sized = small.model_copy(update={"resources": resources})
        mine = [layout for layout in wanted if layout["world_size"] == world]
        code = _run(run, Standing(sized, run, stores), mine)
        if code != Exit.DONE:
            return code
    return compute(
        "trainer.commands.verify_layouts", [str(run.root), *(["--json"] if as_json else [])]
    )


def _layouts(config: Config, *, every_stage: bool) -> Iterator[dict[str, Any]]:
    """Plain on one rank, then every engine x world x accumulation x packing that is implied."""
    # Rows of examples were packed, or not, when they were prepared.
    for packing in (config.data.packing,) if has_own_task(config) else (True, False):
        yield _layout("plain", 1, 1, packing)
        if isinstance(config.engine, PlainEngine):
            yield from (_layout("plain", 1, a, packing) for a in _ACCUMULATIONS[1:])
            continue
        if isinstance(config.engine, CanonicalEngine):
            yield from (
                _layout("canonical", w, a, packing) for w in _WORLDS for a in _ACCUMULATIONS
            )
            yield _layout("canonical", 3, _UNEVEN, packing)
            continue
        stages = range(4) if every_stage else [config.engine.stage]
        if config.precision.kind == "bf16":  # DeepSpeed has no fp32 masters at stage 0
            stages = [stage for stage in stages if stage > 0]
        for stage in stages:
            for world in _WORLDS:
                for accumulation in _ACCUMULATIONS:
                    yield _layout(f"zero{stage}", world, accumulation, packing)
            yield _layout(f"zero{stage}", 3, _UNEVEN, packing)


def _layout(engine: str, world_size: int, accumulation: int, packing: bool) -> dict[str, Any]:
    return {
        "engine": engine,
        "world_size": world_size,
        "accumulation": accumulation,
        "packing": packing,
    }


def _run(run: RunFiles, standing: Standing, layouts: list[dict[str, Any]]) -> int:
    files = new_attempt(run)
    plan = plan_of(standing, attempt=files.number, run_id="verify")
    backend = LocalBackend(module=_RANKS)
    submission = backend.render(plan, run_folder=str(run.root))
    write_attempt(files, plan, submission)
    write_json(files.root / "layouts.json", layouts)
    return backend.submit(submission, run.root, attempt=files.number)
