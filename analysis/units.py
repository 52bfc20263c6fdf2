"""Numbers for people: three significant digits, a unit that fits. Files and JSON keep SI base units."""

from __future__ import annotations

import math

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BINARY = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def digits(value: float, significant: int = 3) -> str:
    """`value` to so many significant digits (more before the point if need be), without an exponent where readable."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = significant - 1 - math.floor(math.log10(abs(value)))
    if not -3 <= decimals <= 6:
        return f"{value:.{significant}g}"
    return f"{value:.{max(decimals, 0)}f}"


def seconds(value: float) -> str:
    """`0.00123` -> `1.23 ms`."""
    size, unit = next((row for row in _TIMES if value >= row[0]), _TIMES[-1])
    return f"{digits(value / size)} {unit}"


def count(value: float, unit: str = "") -> str:
    """`1.2e12, "FLOP/s"` -> `1.20 TFLOP/s`."""
    size, prefix = next((row for row in _DECIMAL if abs(value) >= row[0]), _DECIMAL[-1])
    return f"{digits(value / size)} {prefix}{unit}".rstrip()


def size(value: float) -> str:
    """Bytes, in powers of two."""
    scale, unit = next((row for row in _BINARY if value >= row[0]), _BINARY[-1])
    return f"{digits(value / scale)} {unit}"


def duration(value: float) -> str:
    """Wall-clock time for a person: `3 min 12 s`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
