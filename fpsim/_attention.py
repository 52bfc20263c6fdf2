"""Attention's two products on matrix engines, and the float32 softmax between them, every operation named.

For queries q (..., Q, D), keys k (..., K, D) and values v (..., K, V), all codes:

1. scores = q @ k^T on `spec`, read as float32 (exact for float accumulators; int32 to nearest even).
2. x = scores * scale, one float32 multiplication; then x + mask, one float32 addition, where there is a mask.
3. m = max of x over the keys; e = exp(x - m): one float32 subtraction, one exponential (below), in float32.
4. l = sum of e, one float32 addition per key, in ascending order of keys, from the first.
5. normalize="before": P = e / l, one float32 division. normalize="after" (flash attention): P = e.
6. codes of P: P * p_scale, one float32 multiplication where p_scale is not 1, encoded in the format of `pv.a`, to
   nearest even, saturating. A float32 `pv.a` keeps P as it is.
7. y = codes @ v on `pv`, read as float32; normalize="after": y / l, one division; then y * output_scale, one
   multiplication, where that is not 1.

All float32 operations round to nearest even and keep subnormals. The exponential is a fixed sequence of float64
operations (`exponential`), so that it gives the same bits on every machine; it differs from the correctly rounded
float32 only where that is closer to a tie than 2**-20 of a step. What a fused kernel does besides, rescaling running
sums block by block and its own exp2, is not modelled: the softmax of libraries is not claimed, the two products are.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim._tensors import host_array
from fpsim.codec import Array, encode
from fpsim.formats import container
from fpsim.gemm import matmul
from fpsim.spec import MatmulSpec

Normalize = Literal["before", "after"]
_ORDERS: tuple[Normalize, ...] = ("before", "after")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Every stage of one attention.

    scores : (..., Q, K), the first product as the engine gives it, not scaled.
    sums : (..., Q, 1) float32, the l of each query.
    probabilities : (..., Q, K) float32, P before it is encoded.
    codes : (..., Q, K) codes of P, the second product's operand.
    values : (..., Q, V), the second product as the engine gives it.
    output : (..., Q, V) float32.
    """

    scores: Array
    sums: Array
    probabilities: Array
    codes: Array
    values: Array
    output: Array


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    spec: MatmulSpec,
    pv: MatmulSpec | None = None,
    *,
    scale: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    p_scale: float = 1.0,
    output_scale: npt.ArrayLike | None = None,
    normalize: Normalize = "before",
    backend: str = "cpu",
) -> Attention:
    """softmax(q k^T * scale + mask) v, the products on emulated engines; the module's docstring is the definition.

    q, k, v : codes of spec.a, spec.b and pv.b, shapes (..., Q, D), (..., K, D), (..., K, V); leading axes broadcast.
    spec, pv : arithmetic of the first and the second product; pv None is spec.
    scale : float32, broadcastable to (..., Q, K): the operands' scales times 1 / sqrt(D); None is 1 / sqrt(D).
    mask : float32, broadcastable to (..., Q, K), added to the scaled scores; a query with nothing but -inf gives NaN.
    p_scale : float32 factor that moves P into the range of its format (448 for E4M3).
    output_scale : float32, broadcastable to (..., Q, V): the values' scale over p_scale; None is 1 / p_scale.

    Raises ValueError for shapes that do not fit, no keys, engines with block scales or an epilogue, float64 results, or
    what `fpsim.matmul` raises.
    """
    second = spec if pv is None else pv
    for name, row in (("spec", spec), ("pv", second)):
        held = container(row.out).name
        if row.scale is not None or row.epilogue is not None or held in ("f64", "int64"):
            raise ValueError(
                f"{name} is {row.engine or row}; attention takes engines without block scales and without an epilogue, "
                "whose results fit float32"
            )
    if normalize not in _ORDERS:
        raise unknown("normalization", normalize, _ORDERS)
    left, right, last = host_array(q), host_array(k), host_array(v)
    if min(left.ndim, right.ndim, last.ndim) < 2 or right.shape[-2] != last.shape[-2] or not right.shape[-2]:
        raise ValueError(
            f"q, k and v are {left.shape}, {right.shape} and {last.shape}; allowed: (..., Q, D), (..., K, D) and "
            "(..., K, V) with as many keys as values, at least one"
        )
    scores = matmul(left, np.swapaxes(right, -1, -2), spec, backend=backend)
    factor = np.float32(1 / math.sqrt(left.shape[-1])) if scale is None else np.asarray(scale, np.float32)
    with np.errstate(all="ignore"):
        x = _spread(_float32(scores) * factor, scores.shape, "scale")
        if mask is not None:
            x = _spread(x + np.asarray(mask, np.float32), scores.shape, "mask")
        weights = exponential(x - x.max(axis=-1, keepdims=True))
        sums = weights[..., :1].copy()
        for key in range(1, weights.shape[-1]):
            sums += weights[..., key : key + 1]
        p = weights / sums if normalize == "before" else weights
        moved = p if p_scale == 1 else p * np.float32(p_scale)
        codes = encode(moved, second.a)
        values = matmul(codes, last, second, backend=backend)
        output = _float32(values) if normalize == "before" else _float32(values) / sums
        back = np.float32(1 / p_scale) if output_scale is None else np.asarray(output_scale, np.float32)
        output = output if back.size == 1 and back.item() == 1 else _spread(output * back, values.shape, "output_scale")
    return Attention(scores=scores, sums=sums, probabilities=p, codes=codes, values=values, output=output)


def _float32(x: Array) -> Array:
    return x.astype(np.float32)


def _spread(made: Array, shape: tuple[int, ...], name: str) -> Array:
    if made.shape != shape:
        raise ValueError(f"{name} does not broadcast to {shape}: it made the product {made.shape}")
    return made


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # 32 significant bits: times an integer of 8 bits it is exact in float64
_LN2_LOW = 1.9082149292705877e-10  # ln 2 - _LN2_HIGH
_TERMS = 13  #: of the Taylor series: |r| <= 0.347, so the rest is below 0.347**14 / 14! = 2**-57


def exponential(x: Array) -> Array:
    """exp of float32 values x <= 0 in float32: 2**n * exp(r) with n = rint(x / ln 2), by Horner's rule in float64."""
    wide = np.maximum(x, np.float32(-120)).astype(np.float64)  # exp(-120) is below half the smallest float32
    n = np.rint(wide * _LOG2_E)
    r = (wide - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.full_like(r, 1 / math.factorial(_TERMS))
    for power in range(_TERMS - 1, -1, -1):
        series = series * r + 1 / math.factorial(power)
    with np.errstate(under="ignore", invalid="ignore"):
        made: Array = np.ldexp(series, np.where(np.isnan(n), 0, n).astype(np.int32)).astype(np.float32)
    return made
