"""Numbers as people read them."""

import pytest

from analysis import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.00"),
        (12.345, "12.3"),
        (123.45, "123"),
        (1234.5, "1234"),
        (0.00123, "0.00123"),
        (1e-9, "1e-09"),
        (3.4e38, "3.4e+38"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert units.digits(value) == text


def test_units() -> None:
    assert units.seconds(1.5) == "1.50 s"
    assert units.seconds(2.5e-5) == "25.0 µs"
    assert units.seconds(2.5e-10) == "0.250 ns"
    assert units.count(3380.6e9, "MAC") == "3.38 TMAC"
    assert units.count(12) == "12.0"
    assert units.size(3 * 2**20) == "3.00 MiB"
    assert [units.duration(value) for value in (3.4, 75, 3700)] == ["3 s", "1 min 15 s", "1 h 1 min"]
