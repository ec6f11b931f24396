"""Every pair once, in rounds of pairs that do not share anybody. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def tournament(players: Sequence[int]) -> list[list[tuple[int, int]]]:
    """n - 1 rounds for an even number of players, n for an odd one (one sits out in each).

    Source: the circle method of round-robin tournaments (R. Schurig, 1886): one stands still, the
    others move on by one place.
    """
    circle: list[int | None] = [*players]
    if len(circle) < 2:
        return []
    if len(circle) % 2:
        circle.append(None)
    rounds = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        facing = zip(circle[:half], reversed(circle[half:]), strict=True)
        rounds.append([(a, b) for a, b in facing if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def partner(pairs: Sequence[tuple[int, int]], player: int) -> int | None:
    """Whom `player` meets in that round; None: nobody."""
    for one, other in pairs:
        if player in (one, other):
            return other if player == one else one
    return None
