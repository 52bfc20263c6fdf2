"""One addition: how an exact sum is rounded, and what Inf and NaN among the terms make of it."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from fpsim.formats import Format, container, scalar_format
from fpsim.reference.numbers import Number, decode, encode, round_magnitude
from fpsim.rounding import rounding as find_rounding

#: What an engine returns for NaN, per container (NVIDIA's canonical NaN; float64 has the IEEE quiet NaN).
ENGINE_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "f64": 0x7FF8000000000000, "bf16": 0x7FFF}

ONE = Number("finite", False, 1, 0, 0)


def engine_nan(held: Format) -> int:
    """The one NaN of accumulators in `held`: NVIDIA's, else the format's own, else the largest value."""
    own = held.max_code if held.nan_code is None else held.nan_code
    return ENGINE_NAN.get(held.name, own << held.shift)


# -- steps: the roundings of matrix instructions ------------------------------------------------------------------


def infinity(held: Format) -> int:
    """What a sum beyond the range becomes: Inf, else NaN, else the largest value."""
    if held.infinity_code is not None:
        return held.infinity_code
    return held.max_code if held.nan_code is None else engine_nan(held)


def round_sum(total: Fraction, rounding: str, output: str) -> int:
    """Round an exact sum once, into the container of `output`. Zero is +0 and overflow is Inf, for every rounding."""
    row, held = scalar_format(output), container(output)
    code = round_magnitude(abs(total), total < 0, row, find_rounding(rounding))
    if code > row.max_code:
        return _with_sign(infinity(held), total < 0, held)
    return _with_sign(code << (held.mantissa_bits - row.mantissa_bits), total < 0, held) if code else 0


def _with_sign(code: int, negative: bool, held: Format) -> int:
    """A magnitude's code with its sign; NaN has none."""
    nan = held.nan_code is not None and code == engine_nan(held)
    return code | held.sign_bit if negative and not nan else code


def special_sum(products: Sequence[tuple[Number, Number]], c: Number, output: str) -> int | None:
    """The result of an addition in which an Inf or NaN takes part, by IEEE rules; None if all is finite."""
    kind, negative = _special_class(products, c)
    held = container(output)
    if kind == "nan":
        return engine_nan(held)
    return _with_sign(infinity(held), negative, held) if kind == "infinite" else None


def _special_class(products: Sequence[tuple[Number, Number]], c: Number) -> tuple[str, bool]:
    """Whether a sum is NaN, infinite (and negative) or finite."""
    nan, infinite_signs = c.kind == "nan", {c.negative} if c.kind == "infinite" else set()
    for a, b in products:
        if "nan" in (a.kind, b.kind):
            nan = True
        elif "infinite" in (a.kind, b.kind):
            if (a.kind == "finite" and a.significand == 0) or (b.kind == "finite" and b.significand == 0):
                nan = True
            infinite_signs.add(a.negative != b.negative)
    if nan or len(infinite_signs) == 2:
        return "nan", False
    return ("infinite", True in infinite_signs) if infinite_signs else ("finite", False)


# -- chains: the operations of IEEE 754 ---------------------------------------------------------------------------


def ieee_result(number: Number, rounding: str, output: str, overflow: str = "infinity") -> int:
    """An operation's exact result, rounded once into the container of `output`; overflow as `overflow` names it."""
    held = container(output)
    code = encode(number, output, rounding, overflow, "ocp-nonsat")
    return engine_nan(held) if decode(code, held).kind == "nan" else code


def multiply_add(a: Number, b: Number, c: Number, rounding: str, output: str, overflow: str = "infinity") -> int:
    """IEEE fusedMultiplyAdd into `output`: one rounding; an exact zero is +0 unless both addends are -0 (or "rd")."""
    kind, negative = _special_class([(a, b)], c)
    if kind != "finite":
        return ieee_result(Number("nan" if kind == "nan" else "infinite", negative), rounding, output, overflow)
    product, minus = a.value * b.value, a.negative != b.negative
    total = product + c.value
    if total == 0:
        same = product == 0 and minus == c.negative
        return ieee_result(Number("finite", minus if same else rounding == "rd"), rounding, output, overflow)
    return ieee_result(_exact(total), rounding, output, overflow)


def multiply(a: Number, b: Number, rounding: str, output: str, overflow: str = "infinity") -> int:
    """IEEE multiplication into `output`. Adding a zero of the product's sign changes nothing, not even a zero."""
    return multiply_add(a, b, Number("finite", a.negative != b.negative), rounding, output, overflow)


def add(x: Number, y: Number, rounding: str, output: str, overflow: str = "infinity") -> int:
    """IEEE addition into `output`."""
    return multiply_add(x, ONE, y, rounding, output, overflow)


def _exact(value: Fraction) -> Number:
    """A binary fraction as a number."""
    return Number("finite", value < 0, abs(value.numerator), 0, value.denominator.bit_length() - 1)


def flushed(number: Number, keep_sign: bool) -> Number:
    """A subnormal as a zero."""
    if number.kind == "finite" and number.significand < 1 << number.fraction_bits:
        return replace(number, significand=0, negative=number.negative and keep_sign)
    return number


def flushed_code(code: int, output: str) -> int:
    """A result code of `output`, a subnormal as a zero of its sign."""
    number = decode(code, output)
    flat = flushed(number, True)
    return code if flat == number else encode(flat, output)
