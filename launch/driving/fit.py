"""An attempt cut to the nodes that are there."""

from __future__ import annotations

from dataclasses import replace

from launch.base import spec_of
from launch.node.ranks_spec import RANKS_FILE, RanksSpec, read_spec, spec_text
from launch.run.lineage import write_lineage
from trainer.changes import Change, class_of
from trainer.plan import read_plan, write_plan
from trainer.planning import replanned
from trainer.records.run_files import AttemptFiles, RunFiles

_WHERE = "resources.nodes"


def fitted(run: RunFiles, files: AttemptFiles, spec: RanksSpec, *, nodes: int) -> RanksSpec:
    """The attempt's plan and ranks.json for so many nodes, written. Nothing of it runs yet.

    Raises: ConfigError if the run cannot have so few ranks.
    """
    if spec.nodes == nodes:
        return spec
    found = _change(run, files, nodes)
    if files.plan.exists():
        plan = replanned(read_plan(files.plan), nodes=nodes)
        spec = spec_of(plan, module=spec.module)
        write_plan(files.plan, plan)
        fixed = plan.config.engine.kind == "canonical"
        found = [replace(change, fixed=fixed) for change in found]
    else:
        spec = replace(spec, nodes=nodes)
    (files.root / RANKS_FILE).write_text(spec_text(spec), encoding="utf-8")
    write_lineage(run, files.number, world_size=spec.world_size, found=found)
    return spec


def _change(run: RunFiles, files: AttemptFiles, nodes: int) -> list[Change]:
    """From the attempt before, if there was one."""
    try:
        before = read_spec(run.attempt(files.number - 1).root / RANKS_FILE).nodes
    except (OSError, ValueError, TypeError):
        return []
    return [] if before == nodes else [Change(_WHERE, before, nodes, *class_of(_WHERE))]
