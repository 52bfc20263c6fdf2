"""Codes and numbers: what a code stands for, and the code a number becomes.

A number is kept as the *code* says it: significand times a power of two, with the exponent the format gives it. The
exponent matters, because a fused dot product aligns its terms by it: a subnormal keeps its format's smallest exponent
although its leading bits are zero.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fpsim.formats import Format, scalar_format
from fpsim.rounding import Conversion, Overflow, Rounding
from fpsim.rounding import conversion as find_conversion
from fpsim.rounding import overflow as find_overflow

Class = Literal["finite", "infinite", "nan"]


@dataclass(frozen=True)
class Number:
    """One decoded code: (-1)**negative * significand * 2**(exponent - fraction_bits).

    `exponent` is that of the format's leading bit, so a normal float has 2**fraction_bits <= significand.
    `payload` is the mantissa field of a NaN, left-aligned in 52 bits.
    """

    kind: Class
    negative: bool = False
    significand: int = 0
    exponent: int = 0
    fraction_bits: int = 0
    payload: int = 0

    @property
    def value(self) -> Fraction:
        """The exact value of a finite number."""
        magnitude = Fraction(self.significand) * Fraction(2) ** (self.exponent - self.fraction_bits)
        return -magnitude if self.negative else magnitude


# -- codes to numbers ---------------------------------------------------------------------------------------------


def decode(code: int, fmt: str | Format) -> Number:
    """The number a code stands for. An integer format takes the integer itself."""
    row = scalar_format(fmt)
    if row.kind == "int":
        return Number("finite", code < 0, abs(code), -row.bias, 0)
    if row.kind == "codebook":
        value = Fraction(row.values[code])
        return Number("finite", value < 0, abs(value.numerator), 0, value.denominator.bit_length() - 1)
    magnitude = (code >> row.shift) & ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
    negative = bool(code >> row.shift & row.sign_bit)
    field, mantissa = magnitude >> row.mantissa_bits, magnitude & ((1 << row.mantissa_bits) - 1)
    if _is_nan(row, negative, magnitude, field, mantissa):
        return Number("nan", negative, payload=mantissa << (52 - row.mantissa_bits))
    if magnitude == row.infinity_code:
        return Number("infinite", negative)
    if field == 0 and row.zero:
        return Number("finite", negative, mantissa, 1 - row.bias, row.mantissa_bits)
    return Number("finite", negative, (1 << row.mantissa_bits) + mantissa, field - row.bias, row.mantissa_bits)


def _is_nan(row: Format, negative: bool, magnitude: int, field: int, mantissa: int) -> bool:
    top = (1 << (row.exponent_bits + row.mantissa_bits)) - 1
    if row.nan == "ieee":
        return field == (1 << row.exponent_bits) - 1 and mantissa != 0
    if row.nan == "negative-zero":
        return negative and magnitude == 0
    return row.nan in ("all-ones", "top") and magnitude == top


# -- numbers to codes ---------------------------------------------------------------------------------------------


def floor_log2(x: Fraction) -> int:
    """The e with 2**e <= x < 2**(e+1), for x > 0."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x >= Fraction(2) ** e else e - 1


def round_magnitude(
    x: Fraction, negative: bool, row: Format, rounding: Rounding, random: tuple[int, int] = (0, 0)
) -> int:
    """Code of |value| x >= 0 rounded as if the exponent range had no upper end (it may exceed `row.max_code`)."""
    if x == 0:
        return 0
    e = max(floor_log2(x), row.minimum_exponent)
    steps = x / Fraction(2) ** (e - row.mantissa_bits)  # in units of the spacing of the format at x
    base = (e - row.minimum_exponent) << row.mantissa_bits
    if not row.zero:
        base -= 1 << row.mantissa_bits
    lower = steps.numerator // steps.denominator
    if rounding.stochastic:
        up = _goes_away(steps - lower, rounding.name, *random)
    else:
        up = _rounds_up(steps - lower, base + lower, negative, rounding.name)
    return max(base + lower + int(up), 0)


def _goes_away(rest: Fraction, rounding: str, random: int, count: int) -> bool:
    """P3109 stochastic rounding of a fraction 0 <= rest < 1 with the integer `random` of `count` bits."""
    scaled, full = rest * 2**count, 2**count
    down = scaled.numerator // scaled.denominator
    if rounding == "sra":
        return down + random >= full
    if rounding == "srb":
        return scaled + random + Fraction(1, 2) >= full and rest != 0
    nearest = down + int(_rounds_up(scaled - down, down, False, "rne"))
    return nearest + random >= full


def _rounds_up(rest: Fraction, lower: int, negative: bool, rounding: str) -> bool:
    """Whether a magnitude `rest` (0 <= rest < 1) above the code `lower` goes to the next code."""
    half = Fraction(1, 2)
    odd = lower % 2 == 1
    if rest == 0:
        return False
    return {
        "rne": rest > half or (rest == half and odd),
        "rna": rest >= half,
        "rnz": rest > half,
        "rz": False,
        "ru": not negative,
        "rd": negative,
        "rodd": not odd,
    }[rounding]


def encode(
    number: Number,
    fmt: str | Format,
    rounding: str | Rounding = "rne",
    overflow: str | Overflow | None = None,
    conversion: str | Conversion = "ocp-sat",
    random: tuple[int, int] = (0, 0),
) -> int:
    """The code that `number` becomes in `fmt`; see `fpsim.rounding` for the names. Integers come out as themselves.

    random : for stochastic roundings, a random integer and how many bits it has.
    """
    row, named = scalar_format(fmt), find_conversion(conversion)
    how = named.rounding_for(row.name, rounding)
    policy = named.overflow_for(row.name) if overflow is None else find_overflow(overflow)
    if row.kind == "codebook":
        return _encode_codebook(number, row)
    if row.kind == "int":
        return _encode_integer(number, row, how, random)
    return _encode_float(number, row, how, policy, named, random) << row.shift


def _encode_codebook(number: Number, row: Format) -> int:
    """The nearest value, ties to the even index; NaN takes the index of the value nearest zero."""
    if number.kind == "infinite":
        return 0 if number.negative else len(row.values) - 1
    x = number.value if number.kind == "finite" else Fraction(0)
    return min(range(len(row.values)), key=lambda i: (abs(Fraction(row.values[i]) - x), i % 2))


def _encode_integer(number: Number, row: Format, rounding: Rounding, random: tuple[int, int]) -> int:
    low, high = int(Fraction(row.min) * 2**row.bias), row.max_code
    if number.kind == "nan":
        return 0
    if number.kind == "infinite":
        return low if number.negative else high
    steps = abs(number.value) * 2**row.bias
    lower = steps.numerator // steps.denominator
    if rounding.stochastic:
        magnitude = lower + int(_goes_away(steps - lower, rounding.name, *random))
    else:
        magnitude = lower + int(_rounds_up(steps - lower, lower, number.negative, rounding.name))
    return min(max(-magnitude if number.negative else magnitude, low), high)


def _encode_float(
    number: Number, row: Format, rounding: Rounding, policy: Overflow, named: Conversion, random: tuple[int, int]
) -> int:
    sign = row.sign_bit if number.negative else 0
    if number.kind == "nan":
        return _nan(number, row, named)
    if number.kind == "finite" and number.significand == 0 and not row.zero:
        return _nan(number, row, named) if named.no_zero == "nan" else 0
    if number.negative and not row.signed and named.negative != "magnitude":
        if (
            number.kind == "finite"
            and row.zero
            and round_magnitude(abs(number.value), True, row, rounding, random) == 0
        ):
            return 0
        return _nan(number, row, named) if named.negative == "nan" else 0
    if number.kind == "infinite":
        return _too_large(number, row, named, {"saturate": "max", "nan": "nan"}.get(policy.name, "inf"))
    code = round_magnitude(abs(number.value), number.negative, row, rounding, random)
    if code > row.max_code:
        inward = rounding.name in ("rz", "rodd") or rounding.name == ("ru" if number.negative else "rd")
        finite = policy.name in ("saturate", "propagate") or (policy.name == "infinity" and inward)
        return _too_large(number, row, named, "max" if finite else "nan" if policy.name == "nan" else "inf")
    if code == 0 and row.nan == "negative-zero":
        return 0
    return sign | code


def _too_large(number: Number, row: Format, named: Conversion, wanted: str) -> int:
    """Inf if wanted and there is one, else NaN if wanted or instead of Inf and there is one, else the largest value."""
    sign = row.sign_bit if number.negative else 0
    if wanted == "inf" and row.infinity_code is not None:
        return sign | row.infinity_code
    if wanted != "max" and row.nan_code is not None:
        return _nan(Number("nan", number.negative), row, named)
    return sign | row.max_code


def _nan(number: Number, row: Format, named: Conversion) -> int:
    sign = row.sign_bit if number.negative else 0
    if row.nan_code is None:
        return {"max": row.max_code, "zero": 0, "opposite-zero": row.sign_bit - sign}[named.no_nan]
    if row.nan == "negative-zero":
        return row.nan_code
    if named.nan == "canonical":
        return row.nan_code
    if named.nan == "signed-ones" and row.nan == "ieee":
        return sign | ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
    if named.nan == "payload" and row.nan == "ieee":
        return sign | row.nan_code | number.payload >> (52 - row.mantissa_bits)
    return sign | row.nan_code
