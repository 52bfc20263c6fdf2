"""Block formats, one block at a time: the scale from the values, the codes from the scale.

Operations that the definitions make in float32 are exact quotients and products rounded once by `numbers.encode`, which
is what an IEEE machine does. Values are finite here; what NaN and Inf do is one sentence in `fpsim.blocks`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from fpsim.formats import BlockFormat, Format, ScaleRule
from fpsim.reference.numbers import Number, decode, encode, floor_log2


@dataclass(frozen=True, kw_only=True)
class Block:
    """The codes of one block, and what they decode to (float32 values, as fractions)."""

    scale: int
    codes: list[int]
    zero_point: int | None
    values: list[Fraction]


def number(value: Fraction, negative: bool = False) -> Number:
    """An exact rational as something `encode` takes: only its value and the sign of a zero matter there.

    A denominator that is no power of two is met by 200 bits and a sticky one, far below what any rounding looks at.
    """
    magnitude, bits = abs(value), value.denominator.bit_length() - 1
    minus = value < 0 or (value == 0 and negative)
    if value.denominator == 1 << bits:
        return Number("finite", minus, magnitude.numerator, 0, bits)
    shift = 200 + bits
    scaled = magnitude * 2**shift
    return Number("finite", minus, (scaled.numerator // scaled.denominator) * 2 + 1, 0, shift + 1)


def rounded(value: Fraction, fmt: str | Format) -> Fraction:
    """The value of `fmt` nearest to `value`, ties to even, saturating."""
    return decode(encode(number(value), fmt), fmt).value


def tensor_scale(amax: Fraction, row: BlockFormat) -> Fraction:
    """The second-level scale of a tensor with this largest magnitude: amax / (element max * scale top), 1 if 0."""
    if not row.tensor_scale:
        return Fraction(1)
    top = Fraction(row.element.max) * Fraction(row.scale_top or row.scale.max)
    return rounded(amax / top, "f32") or Fraction(1)


def encode_block(values: Sequence[Number], row: BlockFormat, tensor: Fraction = Fraction(1)) -> Block:
    """One block of finite float32 values (of all rows of a 2-D block) in `row`, by the format's own rule."""
    exact = [v.value for v in values]
    amax = max((abs(v) for v in exact), default=Fraction(0))
    if row.rule == "range":
        return _asymmetric(values, row)
    if row.rule in _POWERS:
        shared = _POWERS[row.rule](amax, row.element) if amax else -127
        around = (0, -1, 1) if row.rule == "mse" else (0,)
        held = min(max(shared, -127), 127)
        scales = [min(max(held + by, -127), 127) + 127 for by in around]
    else:
        tops = [row.element.max_code, row.element.max_code - 1][: 2 if row.rule == "four-over-six" else 1]
        ratios = [rounded(rounded(amax / decode(code, row.element).value, "f32") / tensor, "f32") for code in tops]
        scales = [encode(number(ratio), row.scale) for ratio in ratios]
    tried = [_at_scale(values, row, scale, tensor) for scale in scales]
    return min(tried, key=lambda block: sum((v - w) ** 2 for v, w in zip(exact, block.values, strict=True)))


def _floor(amax: Fraction, element: Format) -> int:
    return floor_log2(amax) - floor_log2(Fraction(element.max))


def _even(amax: Fraction, element: Format) -> int:
    """Half a unit of the element's last place on top, in the binade of amax (that of subnormals is the last one)."""
    return _floor(amax + Fraction(2) ** (max(floor_log2(amax), -126) - element.mantissa_bits - 1), element)


def _ceil_log2(x: Fraction) -> int:
    return -floor_log2(1 / x)


#: Rule -> exponent of the scale for a largest magnitude that is not 0.
_POWERS: Mapping[ScaleRule, Callable[[Fraction, Format], int]] = {
    "floor": _floor,
    "mse": _floor,
    "even": _even,
    "ceil": lambda amax, element: _ceil_log2(amax) - floor_log2(Fraction(element.max)),
    "rceil": lambda amax, element: _ceil_log2(rounded(amax / Fraction(element.max), "f32") or Fraction(2) ** -149),
}


def _at_scale(values: Sequence[Number], row: BlockFormat, scale: int, tensor: Fraction) -> Block:
    """The elements under one scale code: element(x / step), each times step, both in float32."""
    step = rounded(tensor * decode(scale, row.scale).value, "f32")
    codes = [encode(_quotient(v, step), row.element) for v in values]
    made = [rounded(decode(code, row.element).value * step, "f32") for code in codes]
    return Block(scale=scale, codes=codes, zero_point=None, values=made)


def _quotient(value: Number, step: Fraction) -> Number:
    """value / step in float32, 0 where the step is."""
    if step == 0:
        return number(Fraction(0))
    return number(rounded(value.value / step, "f32"), value.negative)


def _asymmetric(values: Sequence[Number], row: BlockFormat) -> Block:
    """Unsigned integers over a range that includes zero: code = clamp(round(x / s) + z), value = (code - z) * s."""
    exact = [v.value for v in values]
    low, high = min([*exact, Fraction(0)]), max([*exact, Fraction(0)])
    levels, zero_format = row.element.max_code, row.zero_point or row.element
    width = rounded(rounded(high - low, "f32") / levels, "f32")
    scale = encode(number(width), row.scale)
    step = decode(scale, row.scale).value
    zero = encode(number(rounded(-low / step, "f32")), zero_format) if step else 0
    codes = [min(max(encode(_quotient(v, step), "int24") + zero, 0), levels) for v in values]
    made = [rounded((code - zero) * step, "f32") for code in codes]
    return Block(scale=scale, codes=codes, zero_point=zero, values=made)
