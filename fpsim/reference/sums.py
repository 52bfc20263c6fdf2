"""One addition: how an exact sum is rounded, and what Inf and NaN among the terms make of it."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from fpsim.formats import container, scalar_format
from fpsim.reference.numbers import Number, decode, round_magnitude
from fpsim.rounding import rounding as find_rounding

#: What an engine returns for NaN, per container (NVIDIA's canonical NaN; float64 has the IEEE quiet NaN).
ENGINE_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "f64": 0x7FF8000000000000, "bf16": 0x7FFF}


def round_sum(total: Fraction, rounding: str, output: str) -> int:
    """Round an exact sum once, into the container of `output`. Zero is +0 and overflow is Inf, for every rounding."""
    row, held = scalar_format(output), container(output)
    code = round_magnitude(abs(total), total < 0, row, find_rounding(rounding))
    if code > row.max_code:
        code = row.infinity_code if row.infinity_code is not None else row.max_code
    elif code == 0:
        return 0
    code <<= held.mantissa_bits - row.mantissa_bits
    return code | (held.sign_bit if total < 0 else 0)


def special_sum(products: Sequence[tuple[Number, Number]], c: Number, output: str) -> int | None:
    """The result of an addition in which an Inf or NaN takes part, by IEEE rules; None if all is finite."""
    nan, infinite_signs = c.kind == "nan", {c.negative} if c.kind == "infinite" else set()
    for a, b in products:
        if "nan" in (a.kind, b.kind):
            nan = True
        elif "infinite" in (a.kind, b.kind):
            if (a.kind == "finite" and a.significand == 0) or (b.kind == "finite" and b.significand == 0):
                nan = True
            infinite_signs.add(a.negative != b.negative)
    held = container(output)
    if nan or len(infinite_signs) == 2:
        return ENGINE_NAN[held.name]
    if infinite_signs:
        return (held.infinity_code or 0) | (held.sign_bit if True in infinite_signs else 0)
    return None


def _rounded(total: Fraction, negative_zero: bool, rounding: str, output: str) -> int:
    """An IEEE result: `total` rounded, zeros keeping the sign of what underflowed, an exact zero the one given."""
    code = round_sum(total, rounding, output)
    return code if code else container(output).sign_bit if total < 0 or (total == 0 and negative_zero) else 0


def multiply_add(a: Number, b: Number, c: Number, rounding: str, output: str) -> int:
    """IEEE fusedMultiplyAdd into `output`: one rounding; an exact zero is +0 unless both addends are -0 (or "rd")."""
    special = special_sum([(a, b)], c, output)
    if special is not None:
        return special
    product, minus = a.value * b.value, a.negative != b.negative
    both_zero = product == 0 and c.value == 0
    negative_zero = minus and c.negative if both_zero and minus == c.negative else rounding == "rd"
    return _rounded(product + c.value, negative_zero, rounding, output)


ONE = Number("finite", False, 1, 0, 0)


def add(x: int, y: int, output: str) -> int:
    """IEEE addition in `output`, to nearest even."""
    return multiply_add(decode(x, output), ONE, decode(y, output), "rne", output)


def flushed(number: Number, keep_sign: bool) -> Number:
    """A subnormal as a zero."""
    if number.kind == "finite" and number.significand < 1 << number.fraction_bits:
        return replace(number, significand=0, negative=number.negative and keep_sign)
    return number


def flushed_code(code: int, output: str) -> int:
    number = decode(code, output)
    flat = flushed(number, True)
    return code if flat == number else (scalar_format(output).sign_bit if number.negative else 0)
