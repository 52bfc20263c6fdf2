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
    x, tops_x, left = _scaled(a, spec.a, scales[0], spec, step, 1)
    y, tops_y, right = _scaled(b, spec.b, scales[1], spec, step, 0)
    if left is None or right is None:
        return none
    y = panels.pack(y)
    tops_y = np.maximum.reduceat(tops_y, np.arange(0, tops_y.size, panels.PANEL))
    zero = NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent
    found: Bounds | None = bounds(x, tops_x, left, y, tops_y, right, step, kind.fraction_bits, max(zero, -1000))
    if found is None:
        return none
    value = np.pad(c.view(np.float32), ((0, 0), (0, -c.shape[1] % LANES)))
    good = found.certified.copy()
    args = (x, y, step, kind.fraction_bits, value, good, found.units_x, found.units_y, found.norms_x, found.norms_y)
    rows(lambda i, j: certified.chained_certified(*args, i, j), c, a.shape[1])
    if good.all():
        c[...] = value[:, : c.shape[1]].view(c.dtype)
    else:
        wide = np.repeat(good, vector.COLUMNS, axis=1)[:, : c.shape[1]]
        np.copyto(c, value[:, : c.shape[1]].view(c.dtype), where=wide)
    return good


def _scaled(
    codes: Array, row: Format, scales: Array, spec: MatmulSpec, step: int, axis: int
) -> tuple[Array, Array, float | None]:
    """float32 values times their scales, K (`axis`) padded to whole steps; the largest exponent of the scales of each
    row of a or column of b; and what makes int32 of all values (None if nothing does, or a scale is NaN)."""
    kind, length = scalar_format(spec.scale or ""), spec.block or 1
    _, powers = unpack(scales, kind)
    used = powers != ZERO
    tops = np.where(used, powers, np.int16(-1000)).max(axis=axis)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, -codes.shape[axis] % step)
    values = decode(np.pad(codes, pad) if pad[axis][1] else codes, row)
    each = np.repeat(decode(scales, kind).astype(np.float32), length, axis=axis)
    each = each[: values.shape[0], : values.shape[1]]
    with np.errstate(over="ignore"):  # then it does not fit either
        values[: each.shape[0], : each.shape[1]] *= each  # what is beyond is padding
    if not used.any():
        return values, tops, 1.0
    least, most = int(powers[used].min()), int(powers[used].max())
    point = row.mantissa_bits - row.minimum_exponent + kind.mantissa_bits - least
    fits = most + 1 + top_exponent(row) + 1 + point <= 30 and abs(point) <= 60
    return values, tops, 2.0**point if fits else None
