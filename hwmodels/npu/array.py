"""A systolic array with its memories, as the model sees it, and how a device file becomes one.

How many products a processing element makes per cycle in a format is not stored twice: it is the device's peak rate
over rows x columns x arrays x clock.  A 4-bit mode that doubles the rate therefore doubles the products per element,
and a format at half rate takes two passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._names import choose

if TYPE_CHECKING:
    from ..device import ComputeRate, Device, Quantity

DATAFLOWS = ("ws", "os", "is")


class NotSystolic(ValueError):  # noqa: N818 - the name users read
    """The device file says nothing about a systolic array."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the [npu] table of a device file states; `systolic` turns it into numbers.

    scratchpad: the name of the on-chip memory that holds operands; accumulators: that of a separate one for partial
    sums ("" if they share).  overlap: the next fold's stationary operand is loaded and its stream begins while this
    fold drains.
    """

    rows: Quantity
    columns: Quantity
    arrays: Quantity
    dataflow: str
    overlap: bool
    clock: str
    scratchpad: str
    accumulators: str = ""


@dataclass(frozen=True, kw_only=True)
class Systolic:
    """One device: `arrays` arrays of rows x columns at `clock` hertz; memories in bytes, bandwidth in bytes/s.

    vector: operations per second of the vector unit, None if unknown (then its work is free, and a note says so).
    accumulators: bytes for partial sums, 0 if they share the scratchpad.
    """

    name: str
    rows: int
    columns: int
    clock: float
    scratchpad: float
    bandwidth: float
    arrays: int = 1
    dataflow: str = "ws"
    overlap: bool = True
    accumulators: float = 0.0
    vector: float | None = None

    def __post_init__(self) -> None:
        for key in ("rows", "columns", "arrays", "clock", "scratchpad", "bandwidth"):
            if not getattr(self, key) > 0:
                raise ValueError(f"systolic array {self.name!r}: {key} is {getattr(self, key)!r}; allowed: more than 0")
        choose("dataflow", self.dataflow, DATAFLOWS)

    @property
    def elements(self) -> int:
        """Processing elements of all arrays."""
        return self.rows * self.columns * self.arrays

    def packing(self, rate: ComputeRate) -> float:
        """Products per processing element and cycle at a rate of this device."""
        return rate.peak.value / (2.0 * self.elements * self.clock)


def systolic(device: Device) -> Systolic:
    """The array of a device.  Raises NotSystolic for a device whose file has no [npu] table."""
    from ..fallback import vector_rate

    layout = device.npu
    if layout is None:
        raise NotSystolic(
            f"{device.name}: the systolic model needs an [npu] table with rows, columns, arrays and a scratchpad"
        )
    pad = device.caches[layout.scratchpad].capacity
    own = device.caches[layout.accumulators].capacity if layout.accumulators else None
    if pad is None:
        raise NotSystolic(f"{device.name}: the scratchpad {layout.scratchpad!r} has no capacity")
    return Systolic(
        name=device.name,
        rows=round(layout.rows.value),
        columns=round(layout.columns.value),
        arrays=round(layout.arrays.value),
        clock=device.clocks[layout.clock].value,
        dataflow=layout.dataflow,
        overlap=layout.overlap,
        scratchpad=pad.value,
        accumulators=own.value if own else 0.0,
        bandwidth=device.bandwidth,
        vector=vector_rate(device),
    )


def find_array(device: Device, model: str) -> Systolic | None:
    """The array to price a device with: always for "systolic", where there is one for "auto", never otherwise."""
    if model == "systolic" or (model == "auto" and device.npu is not None):
        return systolic(device)
    return None
