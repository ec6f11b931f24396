"""Agreement between ranks: what one knows all know, what fails on one fails on all."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.helpers.ranks import RankPool
from trainer.dist.world import World, is_echo
from trainer.errors import DataError, Exit, PeerFailed


def _agreements(world: World) -> dict[str, Any]:
    rank = world.place.rank
    return {
        "sum": world.sum([rank, 1, 0.5]),
        "max": world.max([-rank, rank]),
        "lead": world.lead(lambda: {"rank": rank, "long": "x" * 3_000_000, "none": None}),
        "tuple": world.lead(lambda: (rank, "gr\u00fc\u00df")),
        "each": world.each(lambda: rank * 2),
        # Texts of unequal length, one of them empty, one with characters of several bytes.
        "gather": world.gather("\u6771" * rank),
    }


def test_all_ranks_hear_the_same(ranks: RankPool) -> None:
    answers = ranks.run(3, _agreements)
    for rank, answer in enumerate(answers):
        assert answer["sum"] == [3.0, 3.0, 1.5]
        assert answer["max"] == [0.0, 2.0]
        assert answer["lead"] == {"rank": 0, "long": "x" * 3_000_000, "none": None}
        assert answer["tuple"] == [0, "gr\u00fc\u00df"]
        assert answer["each"] == rank * 2
        assert answer["gather"] == (["", "\u6771", "\u6771\u6771"] if rank == 0 else [])


def _verdict(world: World, act: Any) -> tuple[str, str, int]:
    try:
        act()
    except Exception as e:
        return type(e).__name__, str(e), int(getattr(e, "exit_code", 0))
    return "", "", 0


def _failures(world: World, broken: int) -> list[tuple[str, str, int]]:
    rank = world.place.rank

    def fail_if_broken() -> int:
        if rank == broken:
            raise DataError("shard 7 is cut short")
        return rank

    def fail() -> None:
        raise OSError(28, "No space left on device")

    heard = [
        _verdict(world, lambda: world.each(fail_if_broken)),
        _verdict(world, lambda: world.lead(fail)),
        _verdict(world, lambda: world.lead(lambda: object())),  # not JSON
        _verdict(world, lambda: world.each(fail)),  # all of them
    ]
    assert world.sum([1]) == [float(world.place.world_size)]  # the world goes on
    return heard


@pytest.mark.parametrize("broken", [0, 2])
def test_an_error_on_one_rank_is_an_error_on_all(broken: int, ranks: RankPool) -> None:
    answers = ranks.run(3, _failures, broken)
    for rank, (each, lead, no_json, everywhere) in enumerate(answers):
        if rank == broken:
            assert each == ("DataError", "shard 7 is cut short", Exit.STOP)
        else:  # and with the exit code of the cause: "do not start again"
            text = f"rank {broken} failed: shard 7 is cut short"
            assert each == ("PeerFailed", text, Exit.STOP)
        if rank == 0:
            assert lead[0] == "OSError"
            assert no_json[0] == "TypeError"
        else:
            assert lead[0] == "PeerFailed"
            assert "No space left on device" in lead[1]
            assert "not JSON serializable" in no_json[1]
        assert everywhere[0] == "OSError"  # its own, not somebody else's


def _lose_rank_1(world: World) -> float:
    if world.place.rank == 1:
        time.sleep(0.3)
        # Not an exit: the pool wants a report, and the connections are lost all the same.
        import torch.distributed as dist

        dist.destroy_process_group()
        return 0.0
    started = time.monotonic()
    with pytest.raises(PeerFailed, match=r"rank \d lost the other ranks") as raised:
        world.sum([1])
    assert is_echo(raised.value)
    return time.monotonic() - started


def test_a_rank_that_is_gone_is_noticed_at_once(ranks: RankPool) -> None:
    waited = ranks.run(3, _lose_rank_1)
    assert max(waited) < 10
