"""Words of floats inside CUDA kernels: reinterpretation and the one conversion numba has no name for.

In numba's simulator (NUMBA_ENABLE_CUDASIM=1), which runs kernels as Python, numpy takes their place.
"""

import math
from fractions import Fraction
from typing import Any

import numba
import numpy as np

float_word: Any  #: bits of a float32, as an int32
word_float: Any  #: the float32 of an int32's bits
double_word: Any  #: bits of a float64, as an int64
integer_float: Any  #: an int32 as a float32, toward zero
long_float: Any  #: an int64 as a float32, toward zero
fused_multiply_add: Any  #: x * y + z, rounded once


def _toward_zero(value: Any) -> Any:
    exact = int(value)
    with np.errstate(all="ignore"):
        near = np.float32(exact)
    return np.nextafter(near, np.float32(0)) if abs(int(near)) > abs(exact) else near


def _nearest(exact: Fraction, target: Any) -> Any:
    """A non-zero number rounded once: through round-to-odd in float64, which keeps what float32 needs to know."""
    if abs(exact) >= 1 << 1024:
        return target(math.inf if exact > 0 else -math.inf)
    near = np.float64(float(exact))
    if target is not np.float32 or Fraction(float(near)) == exact:
        return target(near)
    down = np.nextafter(near, 0.0) if abs(Fraction(float(near))) > abs(exact) else near
    return target((down.view(np.int64) | 1).view(np.float64))


if numba.config.ENABLE_CUDASIM:

    def float_word(x: Any) -> Any:
        return np.float32(x).view(np.int32)

    def word_float(x: Any) -> Any:
        return np.int32(x).view(np.float32)

    def double_word(x: Any) -> Any:
        return np.float64(x).view(np.int64)

    def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
        if not (math.isfinite(x) and math.isfinite(y)):
            return x * y + z
        if not math.isfinite(z):
            return z  # the product is finite, whatever it overflows to
        total = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        return _nearest(total, type(z)) if total else x * y + z

    integer_float = long_float = _toward_zero
else:
    from numba import cuda
    from numba.cuda import libdevice

    @cuda.jit(device=True)
    def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
        return cuda.fma(x, y, z)

    float_word, word_float = libdevice.float_as_int, libdevice.int_as_float
    double_word = libdevice.double_as_longlong
    integer_float, long_float = libdevice.int2float_rz, libdevice.ll2float_rz
