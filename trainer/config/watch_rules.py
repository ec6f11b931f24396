"""The order of time-outs: the watch speaks before the collectives, which name no culprit."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.schema import Config
from trainer.errors import Problem

LEAD_S = 2.0  # for the watch to look and to take stacks


def watch_problems(config: Config) -> Iterator[Problem]:
    watch, timeout_s = config.watch, config.resources.collective_timeout_s
    if not watch.enabled:
        return
    where, longest_s = max(watch.floors.items(), key=lambda floor: floor[1])
    needed = longest_s + watch.grace_s + LEAD_S
    if needed > timeout_s:
        what = (
            f"a hang is named after {longest_s:g} s and ended watch.grace_s ({watch.grace_s:g} s) "
            f"later, but resources.collective_timeout_s ({timeout_s:g} s) ends the ranks before "
            "that, without a culprit"
        )
        fix = f"resources.collective_timeout_s={2 * needed:g}, or a smaller watch.{where}"
        yield Problem(f"watch.{where}", what, fix)
