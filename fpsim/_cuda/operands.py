"""Operands on the device, taken apart there as `fpsim._operands` does on the host."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fpsim._cuda.arrays import Codes, launch, new, zeros
from fpsim._kernels import cuda_arrays
from fpsim._kernels.cuda_tiles import TILE
from fpsim._operands import unpack as unpack_on_host
from fpsim.codec import Array, decode, encode
from fpsim.formats import Format, scalar_format


@cache
def _on_device(row: Format, kind: str, converted: str = "") -> Any:
    """A table over all codes of a format of at most 16 bits: "significands", "exponents" or "values"; else empty.

    converted : the codes are first converted, exactly, to this format.
    """
    if row.bits > 16:
        return cuda.to_device(np.zeros(0, np.int32 if kind == "significands" else np.int16))
    every = np.arange(1 << row.bits).astype(row.code_dtype)
    if kind == "values":
        return cuda.to_device(decode(every, row))
    if converted:
        every, row = encode(decode(every, row), converted, conversion="ocp-nonsat"), scalar_format(converted)
    return cuda.to_device(unpack_on_host(every, row)[kind == "exponents"])


@cache
def empty_table(dtype: str, axes: int) -> Any:
    """A device array without elements, for kernel arguments that are not there."""
    return cuda.to_device(np.zeros((0,) * axes, dtype))


@cache
def _order(depth: int, terms: int, every: int) -> Any:
    """Where each k of the padded product comes from, -1 for padding: ascending, K up to whole steps of `terms`.

    every > 0: within each group of so many, k mod 4 in (0, 1) first, then k mod 4 in (2, 3) ("mod4-pairs").
    """
    length = -(-depth // (every or terms)) * (every or terms)
    k = np.arange(length)
    if every:
        group = np.arange(every)
        order = np.concatenate([group[group % 4 < 2], group[group % 4 >= 2]])
        k = (np.arange(0, length, every)[:, None] + order).reshape(-1)
    return cuda.to_device(np.where(k < depth, k, -1).astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class Side:
    """One operand of a fused dot product: what its codes mean, and in which order k is taken.

    converted : format that codes are converted to first. powers : exponents of block scales (T, rows, K / block).
    """

    codes: Codes
    row: Format
    terms: int
    reordered: int = 0
    converted: str = ""
    powers: Any = None
    block: int = 1

    @property
    def order(self) -> Any:
        return _order(self.codes.shape[2], self.terms, self.reordered)

    def _common(self) -> tuple[Any, ...]:
        fields = (self.row.mantissa_bits, self.row.exponent_bits, self.row.shift)
        tables = (_on_device(self.row, kind, self.converted) for kind in ("significands", "exponents"))
        powers = empty_table("int16", 3) if self.powers is None else self.powers
        return self.codes.words, self.codes.strides, self.order, fields, *tables, powers, self.block

    def unpacked(self) -> tuple[Any, Any]:
        """Significands and marked exponents, (T, rows, K')."""
        shape = (*self.codes.shape[:2], self.order.size)
        significands, exponents = new(shape, np.int32), new(shape, np.int16)
        launch(cuda_arrays.unpack, int(np.prod(shape)), *self._common(), significands, exponents)
        return significands, exponents

    def tiles(self, limits: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Values and exponents (T, K', rows') for the tile kernel, rows' a multiple of its tile, and rows to redo."""
        t, rows, _ = self.codes.shape
        shape = (t, self.order.size, -(-rows // TILE) * TILE)
        values, exponents = new(shape, np.float32), new(shape, np.int16)
        bad = zeros((t, rows), np.int8)
        row = scalar_format(self.converted) if self.converted else self.row
        args = (*self._common(), (*limits, row.mantissa_bits), values, exponents, bad)
        launch(cuda_arrays.unpack_tiles, int(np.prod(shape)), *args)
        return values, exponents, bad


def values(given: Codes, row: Format, order: Array | None = None) -> Any:
    """Exact values of codes (T, rows, K') in the type `decode` gives them, integers as they are; -1 in order: zero."""
    if order is None:
        order = np.arange(given.shape[2])
    where = cuda.to_device(order.astype(np.int32))
    table = _on_device(row, "values") if row.kind != "int" and row.bits <= 16 else None
    if table is None:
        wanted = given.words.dtype if row.kind == "int" else np.dtype(row.code_dtype)
        table = empty_table(wanted.name, 1)
    out = zeros((*given.shape[:2], order.size), table.dtype)
    launch(cuda_arrays.gather, out.size, given.words, given.strides, where, table, out)
    if row.kind != "int" and row.bits > 16:
        if row.shift:
            raise ValueError(f"backend='cuda' does not run {row.name} here; use backend='cpu'")
        out = out.view(np.float64 if row.bits == 64 else np.float32)
    return out


def powers(scales: Codes, spec: Any) -> Any:
    """Marked exponents (T, rows, K / block) of power-of-two scales."""
    side = Side(codes=scales, row=scalar_format(spec.scale or "e8m0"), terms=1)
    return side.unpacked()[1]


def floats(scales: Codes) -> Any:
    """float32 scales of any strides as an array (T, rows, groups)."""
    out = new(scales.shape, np.float32)
    where = cuda.to_device(np.arange(scales.shape[2], dtype=np.int32))
    words = scales.words.view(np.float32) if scales.words.dtype != np.float32 else scales.words
    launch(cuda_arrays.gather, out.size, words, scales.strides, where, empty_table("float32", 1), out)
    return out


def integers(given: Codes, row: Format, point: int) -> Any:
    """Values of a format of at most 8 bits times 2**point, as int32 (T, rows, K)."""
    every = np.arange(1 << row.bits).astype(row.code_dtype)
    table = cuda.to_device((decode(every, row) * 2.0**point).astype(np.int32))
    out = new(given.shape, np.int32)
    order = cuda.to_device(np.arange(given.shape[2], dtype=np.int32))
    launch(cuda_arrays.gather, out.size, given.words, given.strides, order, table, out)
    return out
