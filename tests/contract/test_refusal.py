"""A step that is not to be applied leaves everything as it was, on every engine."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.contract import refusal_cases
from tests.contract.engine_cases import Case
from tests.helpers.ranks import RankPool

LAYOUTS: list[Any] = [(s, "fp32") for s in (0, 1, 2, 3)] + [
    (s, "bf16") for s in (1, 2, 3, "canonical")
]


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_refused_was_never_there(ranks: RankPool, world_size: int) -> None:
    wanted = [
        Case(engine=s, precision=p, optimizer=o, micro_steps=2)
        for s, p in LAYOUTS
        for o in ("adamw", "momentum")
    ]
    if world_size == 1:
        wanted = [Case(engine="plain", precision=p, micro_steps=2) for p in ("fp32", "bf16")]
    by_rank = ranks.run(world_size, refusal_cases.refuse_all, wanted)
    for case, seen, *others in zip(wanted, *by_rank, strict=True):
        assert all(other == seen for other in others) or math.isnan(seen.stats[1][1]), case
        assert [applied for applied, _ in seen.stats] == [False] * 4, case
        norms = [norm for _, norm in seen.stats]
        assert seen.asked == norms[:1], case  # about the one norm that is a number
        assert not any(math.isfinite(norm) for norm in norms[1:]), case
        assert seen.unharmed, case
        assert seen.as_if_never, case
