"""A number with its unit, converted once, when it is read.

A table per dimension lists the units a data file may use; anything else is an error that names them.  Stored values are
SI base units: seconds, bytes, bytes per second, operations per second, hertz, watts, joules, square metres.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "rate": {"GFLOP/s": 1e9, "TFLOP/s": 1e12, "PFLOP/s": 1e15, "GOP/s": 1e9, "TOP/s": 1e12, "POP/s": 1e15},
        "per clock": {"FLOP/clk": 1.0, "OP/clk": 1.0},
        "clock": {"MHz": 1e6, "GHz": 1e9},
        "bandwidth": {"GB/s": 1e9, "TB/s": 1e12, "GiB/s": 2.0**30, "TiB/s": 2.0**40},
        "capacity": {
            "kB": 1e3,
            "MB": 1e6,
            "GB": 1e9,
            "KiB": 2.0**10,
            "MiB": 2.0**20,
            "GiB": 2.0**30,
        },
        "power": {"pW": 1e-12, "nW": 1e-9, "W": 1.0, "kW": 1e3},
        "power per byte": {"nW/byte": 1e-9},
        "time": {"ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3},
        "energy": {"pJ/byte": 1e-12, "pJ/bit": 8e-12, "pJ/64bit": 1e-12 / 8},
        "per-operation energy": {"pJ": 1e-12, "fJ": 1e-15},
        "area": {"um2": 1e-12},
        "count": {"1": 1.0},
    }
)


def convert(dimension: str, value: float, unit: str) -> float:
    """`value` in SI base units; ValueError naming the units of the dimension if `unit` is not one of them."""
    units = UNITS[dimension]
    if unit not in units:
        raise ValueError(f"unit {unit!r} is not a {dimension}; allowed: {', '.join(units)}")
    return value * units[unit]
