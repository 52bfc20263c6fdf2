"""Block-scaled FP4 on the CPU: by certificate where nothing is truncated, else output by output.

With the scales multiplied in, a GroupedDot is a sum of products of float32 values that is truncated by the exponents of
the scales alone. E2M1 times UE4M3 or E8M0 has few bits and F = 35 keeps many, so on anything but extreme scales nothing
is ever dropped, and `_kernels.certified` has the argument (with the largest exponent of the scales in the place of that
of the elements).
"""

from functools import partial

import numpy as np

from fpsim._cpu.bounds import Bounds, bounds
from fpsim._cpu.plans import top_exponent
from fpsim._cpu.rows import Scales, rows, words
from fpsim._cpu.steps import grouped_operands, grouped_plan
from fpsim._kernels import certified, panels, products, vector
from fpsim._kernels.accumulate import NO_FLOOR, ZERO
from fpsim._kernels.lanes import LANES
from fpsim._operands import unpack
from fpsim.accumulators import GroupedDot
from fpsim.codec import Array, decode
from fpsim.formats import Format, scalar_format
from fpsim.spec import MatmulSpec


def grouped(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None) -> None:
    grouped_plan(spec, kind)  # for its complaints
    left = np.ones((c.shape[0], -(-c.shape[1] // vector.COLUMNS)), bool)
    if kind.rounding == "rz" and kind.output == "f32" and scales is not None:
        left = ~_certified(a, b, c, spec, kind, scales)
    if not left.any():
        return
    x, fa, ea, y, fb, eb, plan = grouped_operands(a, b, spec, kind, scales)
    for tile in np.flatnonzero(left.any(axis=0)):
        which = np.flatnonzero(left[:, tile])
        columns = slice(tile * vector.COLUMNS, (tile + 1) * vector.COLUMNS)
        out = np.ascontiguousarray(c[which, columns])
        part = (x[which], fa[which], ea[which], y[columns], fb[columns], eb[columns], plan, words(out))
        rows(partial(products.grouped, *part), out, a.shape[1])
        c[which, columns] = out


def _certified(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales) -> Array:
    """Fill what is certified of c; returns which (row, tile) that is."""
    none = np.zeros((c.shape[0], -(-c.shape[1] // vector.COLUMNS)), bool)
    step = kind.group * kind.groups
    x, ex, left = _scaled(a, spec.a, scales[0], spec, step)
    y, ey, right = _scaled(np.ascontiguousarray(b.T), spec.b, np.ascontiguousarray(scales[1].T), spec, step)
    if left is None or right is None:
        return none
    zero = NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent
    y, ey = panels.pack(np.ascontiguousarray(y.T)), panels.pack(np.ascontiguousarray(ey.T), -1000)
    found: Bounds | None = bounds(x, ex, left, y, ey, right, step, kind.fraction_bits, max(zero, -1000))
    if found is None:
        return none
    value = np.pad(c.view(np.float32), ((0, 0), (0, -c.shape[1] % LANES)))
    good = found.certified.copy()
    args = (x, y, step, kind.fraction_bits, value, good, found.units_x, found.units_y, found.norms_x, found.norms_y)
    rows(lambda i, j: certified.chained_certified(*args, i, j), c, a.shape[1])
    wide = np.repeat(good, vector.COLUMNS, axis=1)[:, : c.shape[1]]
    np.copyto(c, value[:, : c.shape[1]].view(c.dtype), where=wide)
    return good


def _scaled(codes: Array, row: Format, scales: Array, spec: MatmulSpec, step: int) -> tuple[Array, Array, float | None]:
    """Rows of float32 values times their scales, K padded to whole steps; the exponents of the scales where the element
    is not zero; and what makes int32 of all values (None if nothing does, or a scale is NaN)."""
    kind = scalar_format(spec.scale or "")
    _, powers = unpack(scales, kind)
    whole, used = decode(scales, kind).astype(np.float32), powers != ZERO
    pad = -codes.shape[1] % step
    if not used.any():
        shape = (len(codes), codes.shape[1] + pad)
        return np.zeros(shape, np.float32), np.full(shape, -1000, np.int16), 1.0
    least, most = int(powers[used].min()), int(powers[used].max())
    point = row.mantissa_bits - row.minimum_exponent + kind.mantissa_bits - least
    fits = most + 1 + top_exponent(row) + 1 + point <= 30 and abs(point) <= 60
    length = spec.block or 1
    steps = np.repeat(np.where(used, powers, -1000).astype(np.int16), length, axis=1)[:, : codes.shape[1]]
    with np.errstate(over="ignore"):  # then it does not fit either
        values = decode(codes, row) * np.repeat(whole, length, axis=1)[:, : codes.shape[1]]
    steps = np.where(values == 0, np.int16(-1000), steps)
    x = np.pad(values, ((0, 0), (0, pad)))
    return x, np.pad(steps, ((0, 0), (0, pad)), constant_values=-1000), 2.0**point if fits else None
