"""longhaul plan [key=value ...]: the numbers of a run; nothing is started."""

from __future__ import annotations

from launch.settings.arguments import add_cfg, add_settings, settings_parser, shows_settings
from trainer.errors import Exit

_EPILOG = """\
examples
  longhaul plan model=llama3_8b resources.ranks_per_node=8 batch.micro_batch_size=1 --fit 80GB
  longhaul plan model=llama3_70b engine=zero3 resources.nodes=8 resources.ranks_per_node=8 \\
      batch.global_batch_size=512 batch.micro_batch_size=1 data.sequence_length=8192
  longhaul plan engine=zero3 --why engine.stage
"""


def main(argv: list[str]) -> int:
    parser = settings_parser(
        "plan",
        description="World, batch, memory of a rank, checkpoint size. Starts nothing.",
        epilog=_EPILOG,
    )
    add_settings(parser)
    add_cfg(parser)
    parser.add_argument("--why", metavar="KEY", help="which file or override set a value")
    parser.add_argument("--fit", metavar="80GB", help="ZeRO stage and micro-batch for this memory")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_intermixed_args(argv)
    if shows_settings(given):
        return Exit.DONE
    from launch.plan_command import run as show_plan

    return show_plan(
        given.overrides, given.config_dir, why=given.why, fit=given.fit, json=given.json
    )
