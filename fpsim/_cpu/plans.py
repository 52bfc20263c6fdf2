"""Accumulators flattened to the integers their kernels take."""

import numpy as np

from fpsim._kernels import chain, chain_wide, vector
from fpsim._kernels.accumulate import NO_FLOOR, Fused, Sum
from fpsim.accumulators import FusedDot, PairwiseTree, SequentialFma
from fpsim.codec import decode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import engine_nan, infinity
from fpsim.rounding import conversion as find_conversion
from fpsim.rounding import overflow as find_overflow
from fpsim.rounding import rounding as find_rounding
from fpsim.target import float_target


def fused_plan(kind: FusedDot, a: Format, b: Format, depth: int) -> Fused:
    """Flatten a FusedDot for its operand formats; ValueError if its sums would not fit 63 bits."""
    if a.kind != "float" or b.kind != "float":
        raise ValueError(f"a FusedDot takes float operands, got {a.name} x {b.name}; see IntegerAccumulator")
    if kind.fraction_bits is None:
        raise ValueError("an exact FusedDot has no truncation plan; it runs on its own, not inside another accumulator")
    terms = kind.terms or max(depth, 1)
    product_bits = a.mantissa_bits + b.mantissa_bits
    if max(kind.fraction_bits, product_bits) + (terms + 1).bit_length() + 2 > 62:
        raise ValueError(
            f"{terms} products of {a.name} x {b.name} with {kind.fraction_bits} fraction bits do not fit a 63-bit sum"
        )
    return Fused(
        terms=terms,
        fraction_bits=kind.fraction_bits,
        zero_exponent=NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent,
        product_fraction_bits=product_bits,
        sum=sum_plan(kind.output, kind.rounding),
    )


def sum_plan(output: str, rounding: str) -> Sum:
    """Where sums are rounded to, flattened to integers."""
    held, row = container(output), scalar_format(output)
    return Sum(
        rounding=find_rounding(rounding).code,
        mantissa_bits=row.mantissa_bits,
        minimum_exponent=row.minimum_exponent,
        max_code=row.max_code,
        widen=held.mantissa_bits - row.mantissa_bits,
        container_mantissa_bits=held.mantissa_bits,
        container_exponent_bits=held.exponent_bits,
        infinity=infinity(held),
        nan=engine_nan(held),
        sign_bit=held.sign_bit if held.bits < 64 else -(1 << 63),  # as an int64
        finite=held.max_code,
        unsigned_nan=held.nan_code or 0 if held.nan == "negative-zero" else -1,
        no_infinity=int(held.infinity_code is None and held.nan_code is not None),
    )


def narrow_plan(output: str, rounding: str, overflow: str = "infinity", *, flush: bool = False) -> chain.Narrow:
    """The grid that a chain's results are rounded to; ValueError for a format that float64 cannot emulate."""
    row, how = scalar_format(output), find_rounding(rounding)
    lowest = row.minimum_exponent + 1023
    if row.mantissa_bits > 50 or row.exponent_bits > 10 or lowest <= row.mantissa_bits:
        raise ValueError(
            f"rounding to {output!r} ({rounding}) is not available on this backend: allowed are formats of at most 50 "
            "mantissa and 10 exponent bits, and f64 for chains and trees; backend='reference' computes it slowly"
        )
    values, name = _beyond(row, rounding, overflow), how.name
    return chain.Narrow(
        mantissa_bits=row.mantissa_bits,
        lowest=lowest,
        nearest=-1 if name in ("rne", "rna", "rnz") else 0,
        tie=0 if name == "rna" else 1,
        even=1 if name == "rne" else 0,
        up=-1 if name == "ru" else 0,
        down=-1 if name == "rd" else 0,
        odd=1 if name == "rodd" else 0,
        largest=row.max,
        overflow=values[0],
        negative_overflow=values[1],
        infinity=values[2],
        negative_infinity=values[3],
        smallest=row.smallest_normal if flush else 0.0,
        zero=0.0 if row.nan == "negative-zero" else -0.0,
        nan=row.max if row.nan_code is None else np.nan,
    )


def _beyond(row: Format, rounding: str, overflow: str) -> list[float]:
    """What too large values, of either sign, and infinite ones become."""
    target = float_target(row, find_rounding(rounding), find_overflow(overflow), find_conversion("ocp-nonsat"))
    limits = (target.overflow, target.negative_overflow, target.infinity, target.negative_infinity)
    values: list[float] = decode(np.array([code << row.shift for code in limits], row.code_dtype), row).tolist()
    return values


def wide_plan(kind: SequentialFma | PairwiseTree) -> chain_wide.Wide:
    """The plan of a chain or tree in float64."""
    row, fused = scalar_format("f64"), isinstance(kind, SequentialFma) and kind.fused
    product = "" if fused or kind.product == "f64" else kind.product
    beyond = _beyond(row, kind.rounding, kind.overflow)
    return chain_wide.Wide(
        rounding=find_rounding(kind.rounding).code,
        overflow=beyond[0],
        negative_overflow=beyond[1],
        infinity=beyond[2],
        negative_infinity=beyond[3],
        smallest=row.smallest_normal if kind.flush else 0.0,
        product=narrow_plan(product or "f32", kind.rounding, kind.overflow, flush=kind.flush),
        rounded=bool(product),
    )


def vector_plan(kind: FusedDot, a: Format, b: Format, terms: int, small: bool) -> vector.VectorPlan | None:
    """The plan for the vector kernels, or None where they would not be exact (the scalar kernel then does it all).

    small : exponents are int8, see `small_exponents`.
    """
    if kind.fraction_bits is None or kind.fraction_bits > 26 or a.mantissa_bits + b.mantissa_bits + 2 > 24:
        return None
    row, fraction_bits = scalar_format(kind.output), kind.fraction_bits
    half = kind.output == "f16" and kind.rounding == "rne"
    if not half and not (kind.rounding == "rz" and row.exponent_bits == 8 and container(row).name == "f32"):
        return None
    narrow = not half and (terms + 1) << (fraction_bits + 2) <= 1 << 24
    low = fraction_bits - 125
    return vector.VectorPlan(
        step=-(-terms // vector.GROUP) * vector.GROUP,
        fraction_bits=fraction_bits,
        zero_exponent=-1000 if kind.zero_exponent is None else kind.zero_exponent,
        lowest=a.minimum_exponent + b.minimum_exponent if small else low // 2 * 2,
        low=low,
        keep=-(1 << ((23 if narrow else 52) - row.mantissa_bits)),
        narrow=narrow,
        half=half,
    )


def small_exponents(a: Format, b: Format) -> bool:
    """Whether exponents and their sums, with a mark for zero, fit int8."""
    tops = [top_exponent(row) for row in (a, b)]
    return max(tops) - 64 < a.minimum_exponent + b.minimum_exponent and sum(tops) < 128


def top_exponent(row: Format) -> int:
    """Exponent of the largest finite value."""
    return int(np.frexp(row.max)[1]) - 1
