"""What a product loses on a given accumulator, output by output: overflows, truncated and dropped terms, roundings.

`matmul` and `conv2d` here are those of `fpsim` with a tally, the same bits, slower: one output at a time. What is
counted, by kind of accumulator (`Promoted` and `SplitK`: the inner accumulator's counts plus the outer additions'):

====================  ==========================  =====================  =====================  ======================
kind                  overflow                    truncated              dropped                inexact
====================  ==========================  =====================  =====================  ======================
FusedDot, GroupedDot  steps of finite terms       terms (products,       those of them of       steps whose one
                      whose rounded sum exceeds   groups, the running    which nothing was      rounding changed the
                      the largest value           sum) that lost bits    left                   sum of aligned terms
                                                  when aligned
TwoStageDot           the same, and products of   the same, where they   those of them below    steps whose result is
                      2**128 and more             are first aligned      the alignment's unit   not the exact sum of
                                                                                                their terms
SequentialFma,        operations on finite        0: nothing is aligned  additions that left    operations that
PairwiseTree          values whose rounded        away before the        one addend as it was   rounded (flushed
                      result exceeds the largest  rounding               although the other     results too)
                      value                                              was not zero
FixedPoint            sums out of range: wraps    terms (products, c)    those of them of       readings that rounded
                      or saturations; readings    that lost bits         which nothing was
                      that exceed the largest                            left
                      value
IntegerAccumulator    sums out of range: wraps    0                      0                      0
                      or saturations, and those
                      of a step's own clamp
====================  ==========================  =====================  =====================  ======================

Terms that are zero, and steps with an Inf or NaN among their terms, are not counted: nothing is lost there.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fpsim import conv, gemm
from fpsim._cpu import counting
from fpsim.codec import Array, Flags, as_codes, flags
from fpsim.formats import Format, container, scalar_format
from fpsim.rounding import Rounding
from fpsim.spec import MatmulSpec


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A product and its losses. The arrays have the result's shape (..., M, N).

    result : the accumulator's values, the bits of `fpsim.matmul` before scales, bias and the cast to another output.
    products : products per output (K).
    overflow, truncated, dropped, inexact : int64, see the module.
    """

    result: Array
    products: int
    overflow: Array
    truncated: Array
    dropped: Array
    inexact: Array

    @property
    def totals(self) -> "Totals":
        return Totals(
            outputs=self.result.size,
            products=self.result.size * self.products,
            overflow=int(self.overflow.sum()),
            truncated=int(self.truncated.sum()),
            dropped=int(self.dropped.sum()),
            inexact=int(self.inexact.sum()),
            overflowed_outputs=int(np.count_nonzero(self.overflow)),
            truncated_outputs=int(np.count_nonzero(self.truncated)),
        )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts of a whole product (a layer's), and of the outputs that are touched. They add up over products."""

    outputs: int
    products: int
    overflow: int
    truncated: int
    dropped: int
    inexact: int
    overflowed_outputs: int
    truncated_outputs: int

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __str__(self) -> str:
        def share(count: int, of: int) -> str:
            return f"{count:,}" + (f" ({count / of:.2%})" if of else "")

        return (
            f"{self.outputs:,} outputs of {self.products:,} products: {self.overflow:,} overflows in "
            f"{share(self.overflowed_outputs, self.outputs)} outputs, {share(self.truncated, self.products)} terms "
            f"truncated in {share(self.truncated_outputs, self.outputs)} outputs, {share(self.dropped, self.products)} "
            f"dropped, {self.inexact:,} roundings"
        )


def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    spec: MatmulSpec,
    c: npt.ArrayLike | None = None,
    *,
    a_scale: npt.ArrayLike | None = None,
    b_scale: npt.ArrayLike | None = None,
) -> Counts:
    """a @ b + c in the accumulator of `spec`, with counts; shapes, codes and scales as in `fpsim.matmul`.

    An epilogue's scales and bias have no part in it: leave them out.
    Raises what `fpsim.matmul` raises (OverflowError for overflow="error": count with "saturate" or "wrap"), and
    ValueError for scaled promotions and for float64 chains.
    """
    held = container(spec.accumulator.output)
    plain = MatmulSpec(spec.a, spec.b, spec.accumulator, "", spec.scale, spec.block)
    checked = gemm.matmul(a, b, plain, c, a_scale=a_scale, b_scale=b_scale)  # every error is the product's own
    shape, batch = checked.shape, checked.shape[:-2]
    words = np.dtype(f"i{checked.itemsize}")
    start = np.zeros(shape, words) if c is None else np.broadcast_to(np.asarray(c), shape).copy().view(words)
    tally = np.zeros((*shape, 4), np.int64)
    xs, ys = _per_product(as_codes(a, spec.a), batch), _per_product(as_codes(b, spec.b), batch)
    scales = None
    if spec.scale is not None and a_scale is not None and b_scale is not None:
        scales = [_per_product(as_codes(s, scalar_format(spec.scale)), batch) for s in (a_scale, b_scale)]
    for index in np.ndindex(batch):
        here = (
            None if scales is None else (np.ascontiguousarray(scales[0][index]), np.ascontiguousarray(scales[1][index]))
        )
        x, y = np.ascontiguousarray(xs[index]), np.ascontiguousarray(ys[index])
        counting.accumulate(x, y, start[index], tally[index], plain, here)
    return Counts(
        result=start.view(gemm.result_dtype(held.name)),
        products=xs.shape[-1],
        overflow=tally[..., counting.OVERFLOW],
        truncated=tally[..., counting.TRUNCATED],
        dropped=tally[..., counting.DROPPED],
        inexact=tally[..., counting.INEXACT],
    )


def conv2d(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    spec: MatmulSpec,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_code: int = 0,
    order: str = "channel-row-column",
) -> Counts:
    """`fpsim.conv2d` with counts, arrays (N, O, H', W'); arguments as there, errors as there and in `matmul`."""
    images, weights = as_codes(x, spec.a, "x"), as_codes(w, spec.b, "w")
    form = conv.geometry(images.shape, weights.shape, stride, padding, dilation, groups, order)
    as_codes(np.asarray(pad_code), spec.a, "pad_code")
    parts = [matmul(*product, spec) for product in conv.as_products(images, weights, form, pad_code, order)]
    return Counts(
        products=parts[0].products,
        **{
            name: conv.as_images([getattr(part, name) for part in parts], len(images), form)
            for name in ("result", "overflow", "truncated", "dropped", "inexact")
        },
    )


def _per_product(codes: Array, batch: tuple[int, ...]) -> Array:
    return np.broadcast_to(codes, (*batch, *codes.shape[-2:]))


def encoding(x: npt.ArrayLike, fmt: str | Format, *, rounding: str | Rounding = "rne") -> Flags:
    """Count what encoding `x` in a scalar format does to it: the exceptions of IEEE 754-2019, section 7, as counts.

    inexact (7.6) : finite values that the format does not have. Every overflow is inexact too.
    overflow (7.4) : finite values whose rounded magnitude, with an unbounded exponent, exceeds the largest finite one;
        whatever the conversion makes of them.
    underflow (7.5) : non-zero values below the smallest normal one *before* rounding ("tininess before rounding"), and
        inexact: an exact subnormal does not count; what rounds up to the smallest normal value does.
    nan : NaNs in x.

    Raises ValueError for a codebook, a block format or a stochastic rounding.
    """
    return flags(x, fmt, rounding=rounding)
