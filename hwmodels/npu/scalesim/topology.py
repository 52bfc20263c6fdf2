"""The topology CSV of SCALE-Sim 3.0.0: a header, then one layer per line, convolutions or products.

A product (M, N, K) is the convolution of an M x K input with N filters of 1 x K.  There is no padding, and the output
size is ceil((size - filter + stride) / stride): one more than a convolution has where the stride does not divide, with
windows that stick out over the edge and ask for nothing there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..._names import choose
from ...topology import to_scalesim
from ...workload import Workload

FORMS = ("conv", "gemm")
CONV = ("IFMAP height", "IFMAP width", "filter height", "filter width", "channels", "filters", "stride")
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One line of a topology; `shape` is what two layers must share to have the same report."""

    name: str
    height: int
    width: int
    kernel_height: int
    kernel_width: int
    channels: int
    filters: int
    stride: int = 1

    def __post_init__(self) -> None:
        for key in ("height", "width", "kernel_height", "kernel_width", "channels", "filters", "stride"):
            if getattr(self, key) < 1:
                raise ValueError(f"layer {self.name!r}: {key} is {getattr(self, key)}; allowed: at least 1")
        for kernel, size in ((self.kernel_height, self.height), (self.kernel_width, self.width)):
            if kernel > size:
                raise ValueError(f"layer {self.name!r}: the filter ({kernel}) is larger than its input ({size})")

    @property
    def shape(self) -> tuple[int, ...]:
        return (
            *(self.height, self.width, self.kernel_height, self.kernel_width),
            *(self.channels, self.filters, self.stride),
        )

    @cached_property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of the result, by SCALE-Sim's formula."""
        return (
            -(-(self.height - self.kernel_height + self.stride) // self.stride),
            -(-(self.width - self.kernel_width + self.stride) // self.stride),
        )

    @property
    def m(self) -> int:
        return self.outputs[0] * self.outputs[1]

    @property
    def n(self) -> int:
        return self.filters

    @property
    def k(self) -> int:
        return self.kernel_height * self.kernel_width * self.channels

    def _axis(self, outputs: int, kernel: int, size: int) -> tuple[int, bool]:
        """(input positions touched along one axis, whether every window is inside and none overlap)."""
        touched = np.unique(np.add.outer(np.arange(outputs) * self.stride, np.arange(kernel)))
        inside = int(np.count_nonzero(touched < size))
        return inside, inside == outputs * kernel

    @cached_property
    def distinct(self) -> tuple[int, bool]:
        """(input words asked for at least once, whether each element of the M x K matrix is a word of its own)."""
        rows, alone = self._axis(self.outputs[0], self.kernel_height, self.height)
        columns, alone_too = self._axis(self.outputs[1], self.kernel_width, self.width)
        return rows * columns * self.channels, alone and alone_too

    @property
    def overhangs(self) -> bool:
        """Whether some windows stick out over the edge."""
        rows = (self.outputs[0] - 1) * self.stride + self.kernel_height
        columns = (self.outputs[1] - 1) * self.stride + self.kernel_width
        return rows > self.height or columns > self.width

    @property
    def words(self) -> int:
        """Words of the input."""
        return self.height * self.width * self.channels

    def addresses(self, pixels: Indices, window: Indices, dtype: type[np.signedinteger] = np.int64) -> Indices:
        """Words of the input that the rows `pixels` and columns `window` of the M x K matrix are; -1 outside."""
        row, column = np.divmod(pixels, self.outputs[1])
        row, column = row * self.stride, column * self.stride
        down, rest = np.divmod(window, self.kernel_width * self.channels)
        across, channel = np.divmod(rest, self.channels)
        corner = ((row * self.width + column) * self.channels).astype(dtype)
        offset = ((down * self.width + across) * self.channels + channel).astype(dtype)
        out = np.add.outer(corner, offset)
        if self.overhangs:
            out[np.greater_equal.outer(row, self.height - down)] = -1
            out[np.greater_equal.outer(column, self.width - across)] = -1
        return out


def gemm_layer(name: str, m: int, n: int, k: int) -> Layer:
    """A product as SCALE-Sim writes it."""
    return Layer(name=name, height=m, width=k, kernel_height=1, kernel_width=k, channels=1, filters=n)


def _number(cell: str, key: str, line: int) -> int:
    try:
        return int(cell)
    except ValueError as error:
        raise ValueError(f"topology, line {line}: {key} is {cell!r}; allowed: an integer") from error


def _layers(cells: Sequence[str], form: str, line: int) -> list[Layer]:
    names = ("M", "N", "K") if form == "gemm" else CONV
    if len(cells) not in (len(names) + 1, len(names) + 2):
        raise ValueError(f"topology, line {line}: {len(cells)} columns; allowed for {form!r}: {len(names) + 1}")
    if len(cells) == len(names) + 2 and cells[-1] != "1:1":
        raise ValueError(f"topology, line {line}: sparsity {cells[-1]!r} is not reproduced; allowed: nothing, or '1:1'")
    values = [_number(cell, key, line) for cell, key in zip(cells[1:], names, strict=False)]
    try:
        if form == "gemm":
            return [gemm_layer(cells[0], *values)]
        height, width, rows, columns, channels, filters, stride = values
        layer = Layer(
            name=cells[0],
            height=height,
            width=width,
            kernel_height=rows,
            kernel_width=columns,
            channels=channels,
            filters=filters,
            stride=stride,
        )
    except ValueError as error:
        raise ValueError(f"topology, line {line}: {error}") from error
    if "DP" not in layer.name:
        return [layer]
    # "DP" anywhere in a name means depthwise: one layer per input channel, each with all the filters given
    return [replace(layer, name=f"{layer.name}Channel_{i}", channels=1) for i in range(channels)]


def parse_topology(text: str, form: str = "conv") -> tuple[Layer, ...]:
    """The layers of a topology file: form "conv" (eight columns) or "gemm" (name, M, N, K).

    ValueError names the line and what is allowed there.  Layers whose name holds "DP" are split by channel.
    """
    choose("topology form", form, FORMS)
    out: list[Layer] = []
    for line, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        cells = [cell.strip() for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        if line > 1 and cells:
            out += _layers(cells, form, line)
    if not out:
        raise ValueError("the topology has no layers; a header line and one line per layer are expected")
    return tuple(out)


def load_topology(path: str | Path, form: str = "conv") -> tuple[Layer, ...]:
    """Read a topology file; ValueError names it."""
    found = Path(path)
    try:
        return parse_topology(found.read_text(encoding="utf-8"), form)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error


def layers_of(workload: Workload) -> tuple[Layer, ...]:
    """The matrix work of a workload as SCALE-Sim layers, padding written into the input size."""
    return parse_topology(to_scalesim(workload, "conv"))
