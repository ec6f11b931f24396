"""Memory ran out: the next attempt does the same steps in smaller pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.errors import LonghaulError

if TYPE_CHECKING:  # agents start without it
    from trainer.changes import Change

_WHERE = "batch.micro_batch_size"
# Where sums are defined by the micro-batches, and not by the step alone.
_BITS_DEPEND = ("canonical",)


def in_smaller_pieces(plan: dict[str, Any]) -> tuple[dict[str, Any], Change | None]:
    """The plan with half the micro-batch and the same global batch, and what was changed.

    Unchanged and None where `restart.smaller_micro_batch` is off, where a micro-batch is one row
    already, where other settings do not go with half of it, and with an engine whose bits depend
    on it.
    """
    try:
        config = plan["config"]
        rows, wanted = int(config["batch"]["micro_batch_size"]), config["restart"]
        allowed = bool(wanted.get("smaller_micro_batch")) and rows > 1
    except (KeyError, TypeError, ValueError, AttributeError):
        return plan, None
    if not allowed or config["engine"]["kind"] in _BITS_DEPEND:
        return plan, None
    return _halved(plan, rows)


def _halved(plan: Mapping[str, Any], rows: int) -> tuple[dict[str, Any], Change | None]:
    # A quarter of a second, and pydantic: only where it is needed.
    from trainer.changes import Change, class_of
    from trainer.config.explain import validate
    from trainer.plan import RunPlan
    from trainer.planning import replanned

    config = dict(plan["config"])
    config["batch"] = dict(config["batch"]) | {"micro_batch_size": rows // 2}
    try:
        made = RunPlan.model_validate(dict(plan) | {"config": validate(config)})
        nodes = made.world_size // made.config.resources.ranks_per_node
        smaller = replanned(made, nodes=nodes)
    except (LonghaulError, ValueError, OSError):  # then the attempt is as the one before
        return dict(plan), None
    change = Change(_WHERE, rows, rows // 2, *class_of(_WHERE))
    return smaller.model_dump(mode="json"), change
