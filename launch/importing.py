"""longhaul checkpoint import SOURCE RUN [key=value ...]: a run that goes on from somebody's state.

The settings, the data and the plan are those of a run as `train` would start it: the model that the
source must fit is the plan's. Refused where the run has checkpoints already.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from launch.compute import compute
from launch.run.run_folder import attempts, create, read_record
from launch.settings.arguments import add_settings, settings_parser
from launch.settings.asked import from_overrides
from launch.stand import frozen_hash, plan_of, stand
from launch.start import prepare
from trainer.errors import Exit, Refused
from trainer.plan import write_plan
from trainer.records.run_files import RunFiles

_EPILOG = """\
examples
  longhaul checkpoint import ../other/checkpoints from-ds model=llama_125m optimizer=adamw
  longhaul checkpoint import ../llama from-hf model=hf_folder model.path=../llama --weights-only
"""


def import_run(argv: list[str]) -> int:
    """Raises: as `start`."""
    parser = settings_parser(
        "checkpoint import",
        description="Make a run of another program's checkpoint; its pickles are read as data.",
        epilog=_EPILOG,
    )
    parser.add_argument("source", type=Path, help="a folder, or a file of torch.save")
    parser.add_argument("run", help="the new run's name")
    add_settings(parser)
    parser.add_argument("--weights-only", action="store_true", help="without moments, as step 0")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args(argv)
    if not given.source.exists():
        raise Refused(f"{given.source}: there is nothing to import")
    overrides = [*given.overrides, f"run.name={given.run}"]
    standing = stand(from_overrides(overrides, config_dirs=given.config_dir))
    if standing.run is not None and (attempts(standing.run) or _has_steps(standing.run)):
        raise Refused(f"the run {standing.run.root} has begun already; take another name")
    plan_of(standing, attempt=1, run_id="")
    if standing.stores is None:
        code = prepare(standing.config)
        if isinstance(code, int):
            return code
        standing = replace(standing, stores=code)
    config = standing.config
    run = standing.run or create(
        Path(config.run.root),
        config=config.model_dump(mode="json"),
        frozen_hash=frozen_hash(config),
    )
    plan = plan_of(standing, attempt=1, run_id=read_record(run).run_id)
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
        path = Path(folder) / "plan.json"
        write_plan(path, plan)
        more = [o for o in ("--weights-only", "--json") if getattr(given, o[2:].replace("-", "_"))]
        source, where = str(given.source.resolve()), str(run.root)
        arguments = [source, where, "--plan", str(path), *more]
        code = compute("trainer.commands.checkpoint_import", arguments)
        if code == Exit.DONE:
            write_plan(run.imported, plan)
    if code != Exit.DONE and standing.run is None:
        shutil.rmtree(run.root)  # it was made for this
    return code


def _has_steps(run: RunFiles) -> bool:
    return any(run.checkpoints.glob("step-*"))
