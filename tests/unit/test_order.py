"""The order of samples is a bijection that is known without being stored."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.order import is_held_out, order_keys, permuted


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 64, 65, 1000, 4097, 30_011])
def test_every_index_comes_exactly_once(n: int) -> None:
    for key in (0, 1, 2**64 - 1):
        assert sorted(permuted(np.arange(n), n, key=key)) == list(range(n))


def test_neighbours_are_spread_and_two_keys_give_two_orders() -> None:
    n = 10_000
    first, second = (permuted(np.arange(n), n, key=key) for key in (1, 2))
    assert (first == second).sum() < 10
    # a random permutation of n has a mean jump of n / 3 between neighbours, and no trend
    assert abs(np.abs(np.diff(first)).mean() - n / 3) < n / 50
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.05
    halves = first[: n // 2] < n // 2
    assert abs(halves.mean() - 0.5) < 0.03


def test_small_orders_are_all_met_about_equally_often() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for key in order_keys(3, "x", epochs=np.arange(4800)):
        order = tuple(permuted(np.arange(4), 4, key=int(key)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert max(seen.values()) < 2 * min(seen.values())


def test_an_index_of_a_trillion_is_inside_and_needs_no_others() -> None:
    n = 10**12
    index = np.array([0, 1, 10**9, n - 1], dtype=np.int64)
    together = permuted(index, n, key=7)
    assert ((together >= 0) & (together < n)).all()
    alone = [int(permuted(index[i : i + 1], n, key=7)[0]) for i in range(4)]
    assert together.tolist() == alone


def test_one_call_may_span_epochs() -> None:
    keys = order_keys(0, "a", epochs=np.array([0, 0, 1, 1]))
    index = np.array([0, 1, 0, 1])
    mixed = permuted(index, 100, key=keys)
    assert mixed[:2].tolist() == permuted(index[:2], 100, key=int(keys[0])).tolist()
    assert mixed[2:].tolist() == permuted(index[2:], 100, key=int(keys[2])).tolist()


def test_keys_depend_on_seed_source_and_epoch() -> None:
    epochs = np.arange(3)
    keys = [order_keys(s, n, epochs=epochs).tolist() for s, n in ((0, "a"), (1, "a"), (0, "b"))]
    assert len({key for row in keys for key in row}) == 9


def test_the_split_by_hash_has_the_share_that_was_asked_for() -> None:
    held = [is_held_out(i, 0.1) for i in range(20_000)]
    assert not held[0]
    assert abs(np.mean(held) - 0.1) < 0.01
    assert abs(np.mean(held[:2000]) - 0.1) < 0.03
    assert not any(is_held_out(i, 0.0) for i in range(1000))


def test_a_permutation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the length must be in"):
        permuted(np.zeros(0, dtype=np.int64), 0, key=1)
