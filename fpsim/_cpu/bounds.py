"""What certificates of fused dot products are made of: bounds on rows of a and on panels of b, one pass over each."""

from dataclasses import dataclass

import numpy as np

from fpsim import _jit
from fpsim._cpu.plans import top_exponent
from fpsim._kernels import certified, vector
from fpsim._kernels.panels import PANEL
from fpsim.accumulators import FusedDot
from fpsim.codec import Array
from fpsim.formats import Format, scalar_format


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """See `fpsim._kernels.certified`; b's are per tile of COLUMNS columns."""

    certified: Array  #: bool (M, tiles)
    units_x: Array
    units_y: Array
    norms_x: Array
    norms_y: Array


def fixed_point(row: Format) -> float | None:
    """A power of two that makes an int32 of every value of a format; None if there is none."""
    point = row.mantissa_bits - row.minimum_exponent
    return 2.0**point if point >= 0 and top_exponent(row) + 1 + point <= 30 else None


def of_fused(
    x: Array, ex: Array, y: Array, ey: Array, a: Format, b: Format, kind: FusedDot, plan: vector.VectorPlan
) -> Bounds | None:
    """Of a fused dot product's unpacked operands (y and ey in panels); None where nothing would certify."""
    left, right = fixed_point(a), fixed_point(b)
    if left is None or right is None or plan.half or plan.narrow or scalar_format(kind.output).mantissa_bits != 23:
        return None
    tops_x, tops_y = ex.max(axis=1), ey.reshape(-1, x.shape[1] * PANEL).max(axis=1)
    return bounds(x, tops_x, left, y, tops_y, right, plan.step, plan.fraction_bits, plan.zero_exponent)


def bounds(
    x: Array,
    tops_x: Array,
    left: float,
    y: Array,
    tops_y: Array,
    right: float,
    step: int,
    fraction_bits: int,
    zero_exponent: int,
) -> Bounds | None:
    """Of values x (M, K) and y (panels * K, PANEL), which `left` and `right` make int32 of.

    tops_x, tops_y : the largest exponents of the rows of x and of the panels of y.
    """
    depth, steps, panels = x.shape[1], x.shape[1] // step, len(y) // max(x.shape[1], 1)
    units = np.empty(len(x), np.int32)
    norms_x = np.empty((len(x), steps), np.float32)
    one = (x, step, np.float32(left), units, norms_x)
    _jit.parallel(lambda i, j: certified.row_bounds(*one, i, j), len(x), 16)
    panel_units = np.empty(panels, np.int32)
    panel_norms = np.empty((steps, panels), np.float32)
    other = (y, depth, step, np.float32(right), panel_units, panel_norms)
    _jit.parallel(lambda i, j: certified.panel_bounds(*other, i, j), panels)
    starts = np.arange(0, panels, vector.COLUMNS // PANEL)
    units_x = (units / left).astype(np.float32)
    units_y = (np.minimum.reduceat(panel_units, starts) / right).astype(np.float32)
    # 2**(U + F) against 2**E, in float64, where these powers of two are exact
    reach = np.outer(units_x.astype(np.float64), units_y) * 2.0**fraction_bits
    sums = np.add.outer(tops_x.astype(np.int64), np.maximum.reduceat(tops_y.astype(np.int64), starts))
    largest = np.exp2(sums.astype(np.float64))
    holds = np.maximum(largest, 2.0**zero_exponent) <= reach
    if not holds.any():
        return None
    # Sums of `step` squares in float32 are short by at most step * 2**-24 of themselves, their roots by half of that;
    # two such bounds are multiplied in float32: step + 1 units of 2**-23 cover it all.
    slack = np.float32(1 + (step + 1) * 2.0**-23)
    return Bounds(
        certified=holds,
        units_x=units_x,
        units_y=units_y,
        norms_x=np.sqrt(norms_x) * slack,
        norms_y=np.sqrt(np.maximum.reduceat(panel_norms, starts, axis=1)) * slack,
    )
