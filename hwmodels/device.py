"""A device as sourced data: what it computes per second in which types, what it remembers, how fast that moves.

One TOML file per device in `devices/`; the file name is the device's name.  Every number is a table of value, unit and
source, and may carry a status ("published" unless it says measured, derived or assumed) and a note:

    peak = { value = 989.4, unit = "TFLOP/s", source = "datasheet", note = "dense" }

The loader is strict: unknown, missing or duplicate keys, a unit of the wrong dimension, a source that is not declared,
and a rate given twice are errors that name file and key.  Rates are keyed by both operand types AND the accumulator,
because on many devices that is what decides: consumer GPUs run FP8 at half rate when they add in FP32.

Peaks are dense.  A rate that states `per_clock` and `clock` reproduces its peak as units x per_clock x clock, which a
test checks to 1 %; a rate that cannot says why in `peak.note`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .npu.array import Layout


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers come from: title, publisher's date ("2022-03") and, if it has one, an address."""

    key: str
    title: str
    date: str
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number in SI base units, with the unit it was published in, its source and how sure it is."""

    value: float
    unit: str
    source: str
    status: str = "published"
    note: str = ""

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class ComputeRate:
    """Dense operations per second for one (activation type, weight type, accumulator); a MAC is two operations.

    per_clock: operations per unit and clock; clock: which of the device's clocks the peak is quoted at ("" unknown).
    matrix: on the matrix engine; False for the ordinary vector units.
    """

    activation: str
    weight: str
    accumulator: str
    peak: Quantity
    per_clock: Quantity | None = None
    clock: str = ""
    matrix: bool = True

    @property
    def key(self) -> tuple[str, str, str]:
        """What rates are looked up by."""
        return self.activation, self.weight, self.accumulator


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One level: "dram" (capacity, bandwidth) or an on-chip level; bandwidth None where no source states it."""

    name: str
    technology: str
    capacity: Quantity | None = None
    bandwidth: Quantity | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device; a what-if is `dataclasses.replace(device, ...)`.

    units: how many compute units (SMs, cores, tiles) the rates cover; clocks: named, in hertz.
    power: board or package power limit in watts, None if unpublished.
    vector: rate of the ordinary float32 units where the float32 rate is that of the matrix engine.
    npu: the systolic array, where the file describes one.
    calibration: parameters of the GPU model (`gpu.Parameters`) measured on this device instead of the global ones;
    empty for shipped devices, which share one set.
    """

    name: str
    title: str
    vendor: str
    kind: str
    architecture: str
    rates: Mapping[tuple[str, str, str], ComputeRate]
    dram: Memory
    caches: Mapping[str, Memory] = field(default_factory=dict)
    units: Quantity | None = None
    unit_name: str = "unit"
    clocks: Mapping[str, Quantity] = field(default_factory=dict)
    power: Quantity | None = None
    vector: Quantity | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    decisions: tuple[str, ...] = ()
    npu: Layout | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.dram, self.units, self.power, tuple(self.rates.values())))

    @property
    def bandwidth(self) -> float:
        """Main memory bandwidth, bytes per second."""
        if self.dram.bandwidth is None:
            raise ValueError(f"device {self.name!r} has no main memory bandwidth")
        return self.dram.bandwidth.value

    @property
    def capacity(self) -> float | None:
        """Main memory, bytes; None where it is the host's."""
        return None if self.dram.capacity is None else self.dram.capacity.value

    @property
    def summary(self) -> str:
        """One line for lists: title, memory, bandwidth, fastest rate."""
        best = max(self.rates.values(), key=lambda rate: rate.peak.value)
        memory = "" if self.capacity is None else f"{self.capacity / 1e9:.0f} GB "
        return (
            f"{self.title}: {memory}{self.dram.technology} at {self.bandwidth / 1e9:,.0f} GB/s, "
            f"up to {best.peak.value / 1e12:,.0f} Top/s ({best.activation})"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: every number in SI base units with its source."""
        return {
            "title": self.title,
            "vendor": self.vendor,
            "kind": self.kind,
            "architecture": self.architecture,
            "unit_name": self.unit_name,
            "units": _plain(self.units),
            "clocks": {name: _plain(value) for name, value in self.clocks.items()},
            "power": _plain(self.power),
            "vector": _plain(self.vector),
            "npu": _plain(self.npu),
            "memory": {m.name: _plain(m) for m in (self.dram, *self.caches.values())},
            "rates": [_plain(rate) for rate in self.rates.values()],
            "sources": {key: _plain(value) for key, value in self.sources.items()},
            "decisions": list(self.decisions),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
        }

    def reproduced_peak(self, rate: ComputeRate) -> float | None:
        """units x per_clock x clock of a rate, None where the file does not state all three."""
        if self.units is None or rate.per_clock is None or not rate.clock:
            return None
        return self.units.value * rate.per_clock.value * self.clocks[rate.clock].value


def _plain(row: object) -> Any:
    """A dataclass as plain data, recursively, empty strings and None left out."""
    if not is_dataclass(row):
        return row
    values = {item.name: _plain(getattr(row, item.name)) for item in fields(row)}
    return {key: value for key, value in values.items() if value not in ("", None)}
