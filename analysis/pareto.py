"""Which choices nobody beats."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that no other point dominates, cheapest first.

    A point is dominated by one that costs no more and is at least as good, and better in one of the two. Of equal
    points the first is kept. Raises ValueError for a NaN, which has no place in an order.
    """
    if any(value != value for point in points for value in point):
        raise ValueError("a point with a NaN has no place in an order; leave it out")
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] > points[kept[-1]][1]:
            kept.append(index)
    return kept
