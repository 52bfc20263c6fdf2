"""The front against its definition, on random points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.pareto import front

POINT = st.tuples(st.integers(0, 6), st.integers(0, 6))


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(st.lists(POINT, max_size=12))
def test_exactly_the_undominated_points_once_each(points: list[tuple[float, float]]) -> None:
    kept = front(points)
    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    assert [points[index] for index in kept] == sorted(expected)
    assert all(points.index(points[index]) == index for index in kept)


def test_a_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        front([(1.0, float("nan"))])
