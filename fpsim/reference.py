"""The slow truth: formats, conversions and accumulators in Python integers and fractions.

Everything here is written to be compared with the standards by eye, and shares no code with the kernels that are
checked against it: no numpy, no numba, one value at a time. A number is kept as the *code* says it: significand times a
power of two, with the exponent the format gives it. The exponent matters, because a fused dot product aligns its terms
by it: a subnormal keeps its format's smallest exponent although its leading bits are zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from fpsim.accumulators import (
    Accumulator,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import Format, container, scalar_format
from fpsim.rounding import Conversion, Overflow, Rounding
from fpsim.rounding import conversion as find_conversion
from fpsim.rounding import overflow as find_overflow
from fpsim.rounding import rounding as find_rounding
from fpsim.spec import MatmulSpec

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


# -- accumulators -------------------------------------------------------------------------------------------------

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


def fused_step(products: Sequence[tuple[Number, Number]], c: Number, kind: FusedDot) -> int:
    """One T-FDPA step, arXiv:2511.10909 Algorithm 7: align, truncate, add exactly, round once."""
    special = special_sum(products, c, kind.output)
    if special is not None:
        return special
    # 1. Terms as (value, exponent); the product of two significands is in [0, 4) and is not renormalised.
    terms = [(a.value * b.value, a.exponent + b.exponent) for a, b in products]
    terms.append((c.value, c.exponent))
    # 2. The largest exponent among the terms that are not zero; zeros count with `zero_exponent`.
    exponents = [e for value, e in terms if value != 0]
    if kind.zero_exponent is not None:
        exponents.append(kind.zero_exponent)
    if not exponents:
        return 0
    largest = max(exponents)
    # 3. Truncate each term toward zero at 2**(largest - F), then add exactly.
    total = Fraction(0)
    for value, _ in terms:
        if kind.fraction_bits is None:
            total += value
        else:
            unit = Fraction(2) ** (largest - kind.fraction_bits)
            total += int(value / unit) * unit  # int() truncates toward zero
    # 4. Round once.
    return round_sum(total, kind.rounding, kind.output)


def _fused_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: FusedDot) -> int:
    held, step = container(kind.output), kind.terms or max(len(pairs), 1)
    for start in range(0, len(pairs), step):
        c = fused_step(pairs[start : start + step], decode(c, held), kind)
    return c


def _rounded(total: Fraction, negative_zero: bool, rounding: str, output: str) -> int:
    """An IEEE result: `total` rounded, zeros keeping the sign of what underflowed, an exact zero the one given."""
    code = round_sum(total, rounding, output)
    return code if code else container(output).sign_bit if total < 0 or (total == 0 and negative_zero) else 0


def _multiply_add(a: Number, b: Number, c: Number, rounding: str, output: str) -> int:
    """IEEE fusedMultiplyAdd into `output`: one rounding; an exact zero is +0 unless both addends are -0 (or "rd")."""
    special = special_sum([(a, b)], c, output)
    if special is not None:
        return special
    product, minus = a.value * b.value, a.negative != b.negative
    both_zero = product == 0 and c.value == 0
    negative_zero = minus and c.negative if both_zero and minus == c.negative else rounding == "rd"
    return _rounded(product + c.value, negative_zero, rounding, output)


_ONE = Number("finite", False, 1, 0, 0)


def _add(x: int, y: int, output: str) -> int:
    """IEEE addition in `output`, to nearest even."""
    return _multiply_add(decode(x, output), _ONE, decode(y, output), "rne", output)


def _flushed(number: Number, keep_sign: bool) -> Number:
    """A subnormal as a zero."""
    if number.kind == "finite" and number.significand < 1 << number.fraction_bits:
        return replace(number, significand=0, negative=number.negative and keep_sign)
    return number


def _flushed_code(code: int, output: str) -> int:
    number = decode(code, output)
    flat = _flushed(number, True)
    return code if flat == number else (scalar_format(output).sign_bit if number.negative else 0)


def _fma_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: SequentialFma) -> int:
    order = list(range(len(pairs)))
    if kind.order == "odd-even":
        order = [k for start in range(0, len(pairs), 2) for k in (start + 1, start) if k < len(pairs)]
    for k in order:
        a, b, number = *pairs[k], decode(c, kind.output)
        if kind.flush:
            a, b, number = _flushed(a, True), _flushed(b, True), _flushed(number, True)
        c = _multiply_add(a, b, number, kind.rounding, kind.output)
        if kind.flush:
            c = _flushed_code(c, kind.output)
    return c


def _tree_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: PairwiseTree) -> int:
    def settle(code: int) -> int:
        return _flushed_code(code, kind.output) if kind.flush else code

    zero = Number("finite")
    if kind.flush and pairs:
        flat = _flushed(decode(c, kind.output), False)
        c = c if flat.significand or flat.kind != "finite" else 0
    for start in range(0, len(pairs), kind.terms):
        group = list(pairs[start : start + kind.terms])
        group += [(zero, zero)] * (kind.terms - len(group))
        if kind.flush:
            group = [(_flushed(a, False), _flushed(b, False)) for a, b in group]
        # A product alone: adding -0 changes nothing, not even the sign of a zero.
        minus_zero = Number("finite", True)
        sums = [settle(_multiply_add(a, b, minus_zero, "rne", kind.output)) for a, b in group]
        while len(sums) > 1:
            sums = [settle(_add(x, y, kind.output)) for x, y in zip(sums[::2], sums[1::2], strict=True)]
        c = settle(_add(c, sums[0], kind.output))
    return c


def _floor_at(value: Fraction, exponent: int) -> Fraction:
    """The largest multiple of 2**exponent that is not above `value`."""
    unit = Fraction(2) ** exponent
    return (value // unit) * unit


def _truncated_sum(terms: Sequence[tuple[Fraction, int]], fraction_bits: int) -> tuple[Fraction, int]:
    """Terms (value, exponent) truncated toward zero below their largest exponent, added; and that exponent."""
    largest = max((e for value, e in terms if value != 0), default=-999)
    unit = Fraction(2) ** (largest - fraction_bits)
    return sum((int(value / unit) * unit for value, _ in terms), Fraction(0)), largest


def _two_stage_step(products: Sequence[tuple[Number, Number]], c: Number, kind: TwoStageDot) -> int:
    """TR-FDPA, and GTR-FDPA where `kind.interleaved` (arXiv:2511.10909)."""
    row = scalar_format(kind.output)
    terms = [(a.value * b.value, a.exponent + b.exponent) for a, b in products]
    infinite = [
        (Number("infinite", value < 0), _ONE) if abs(value) >= Fraction(2) ** (row.bias + 1) else pair
        for (value, _), pair in zip(terms, products, strict=True)
    ]
    special = special_sum(infinite, c, kind.output)
    if special is not None:
        return special
    f = kind.fraction_bits
    if kind.interleaved:
        (even, e_even), (odd, e_odd) = _truncated_sum(terms[::2], f), _truncated_sum(terms[1::2], f)
        e_dot = max(e_even, e_odd)
        dot_sum = _floor_at(even, e_dot - f) + _floor_at(odd, e_dot - f)
    else:
        dot_sum, e_dot = _truncated_sum(terms, f)
    largest = max(e_dot, c.exponent)
    total = _floor_at(dot_sum, largest - kind.sum_fraction_bits - 1)
    if not (kind.interleaved and c.exponent < largest - f - 1):
        total += _floor_at(c.value, largest - f)
    if total == 0:
        return 0
    e = max(floor_log2(abs(total)), row.minimum_exponent)
    return round_sum(_floor_at(total, e - kind.sum_fraction_bits), "rne", kind.output)


def _two_stage_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: TwoStageDot) -> int:
    for start in range(0, len(pairs), kind.terms):
        c = _two_stage_step(pairs[start : start + kind.terms], decode(c, kind.output), kind)
    return c


def _grouped_chain(
    pairs: Sequence[tuple[Number, Number]],
    c: int,
    kind: GroupedDot,
    scales: Sequence[tuple[Number, Number]],
    block: int,
) -> int:
    """GST-FDPA (arXiv:2511.10909): exact sums of groups, times their scales, as terms of a fused dot."""
    held = container(kind.output)
    step = kind.group * kind.groups
    for start in range(0, len(pairs), step):
        number = decode(c, held)
        terms, exponents = [number.value], [number.exponent] if number.significand else []
        nan = number.kind == "nan"
        for first in range(start, min(start + step, len(pairs)), kind.group):
            group = pairs[first : min(first + kind.group, len(pairs))]
            scale_a, scale_b = scales[first // block]
            nan = nan or "nan" in (scale_a.kind, scale_b.kind)
            terms.append(sum((a.value * b.value for a, b in group), Fraction(0)) * scale_a.value * scale_b.value)
            if any(a.significand and b.significand for a, b in group) and scale_a.significand and scale_b.significand:
                exponents.append(scale_a.exponent + scale_b.exponent)
        if nan or number.kind != "finite":
            c = ENGINE_NAN[held.name] if nan else c
            continue
        if kind.zero_exponent is not None:
            exponents.append(kind.zero_exponent)
        unit = Fraction(2) ** (max(exponents, default=0) - kind.fraction_bits)
        c = round_sum(sum((int(t / unit) * unit for t in terms), Fraction(0)), kind.rounding, kind.output)
    return c


def _promoted(
    pairs: Sequence[tuple[Number, Number]], c: int, kind: Promoted, scales: Sequence[tuple[Number, Number]]
) -> int:
    if kind.operands:
        pairs = [(_converted(a, kind.operands), _converted(b, kind.operands)) for a, b in pairs]
    for start in range(0, len(pairs), kind.every):
        group = list(pairs[start : start + kind.every])
        if kind.order == "mod4-pairs":
            zero = Number("finite")
            group += [(zero, zero)] * (-len(group) % kind.every)
            group = [p for i, p in enumerate(group) if i % 4 < 2] + [p for i, p in enumerate(group) if i % 4 >= 2]
        inner = _fused_chain(group, 0, kind.inner)
        if kind.scaled:
            scale_a, scale_b = scales[start // kind.every]
            scale = decode(_multiply_add(scale_a, scale_b, Number("finite", True), "rne", kind.output), kind.output)
            c = _multiply_add(scale, decode(inner, kind.output), decode(c, kind.output), "rne", kind.output)
        else:
            c = _add(c, inner, kind.output)
    return c


def _converted(number: Number, target: str) -> Number:
    return decode(encode(number, target, "rne", "infinity", "ocp-nonsat"), target)


def split_ranges(k: int, splits: int, tile: int) -> list[tuple[int, int]]:
    """Contiguous K ranges of ceil(tiles / splits) tiles each; the last one may be short or missing."""
    tiles = -(-k // tile)
    width = -(-tiles // splits) * tile
    return [(start, min(start + width, k)) for start in range(0, k, max(width, 1))]


def _integer_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: IntegerAccumulator) -> int:
    def saturate(x: int, bits: int) -> int:
        return min(max(x, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)

    half, modulus = 1 << (kind.bits - 1), 1 << kind.bits
    for start in range(0, len(pairs), kind.step):
        part = sum(int(a.value * b.value) for a, b in pairs[start : start + kind.step])
        c += part if kind.step_bits is None else saturate(part, kind.step_bits)
        if kind.overflow == "wrap":
            c = (c + half) % modulus - half
        elif kind.overflow == "saturate":
            c = saturate(c, kind.bits)
        elif not -half <= c < half:
            raise OverflowError(f"the {kind.bits}-bit sum is {c} after product {start + kind.step - 1}")
    return c


def accumulate(
    pairs: Sequence[tuple[Number, Number]],
    c: int,
    kind: Accumulator,
    scales: Sequence[tuple[Number, Number]] = (),
    block: int = 1,
) -> int:
    """The result code of one dot product.

    c : a code of the accumulator's container (an int for integers).
    scales, block : for block-scaled kinds, the scales of a and b for each run of `block` products.
    """
    if isinstance(kind, FusedDot):
        if scales:
            pairs = [
                (_scaled(a, scales[k // block][0]), _scaled(b, scales[k // block][1])) for k, (a, b) in enumerate(pairs)
            ]
        return _fused_chain(pairs, c, kind)
    if isinstance(kind, GroupedDot):
        return _grouped_chain(pairs, c, kind, scales, block)
    if isinstance(kind, TwoStageDot):
        return _two_stage_chain(pairs, c, kind)
    if isinstance(kind, SequentialFma):
        return _fma_chain(pairs, c, kind)
    if isinstance(kind, PairwiseTree):
        return _tree_chain(pairs, c, kind)
    if isinstance(kind, Promoted):
        return _promoted(pairs, c, kind, scales)
    if isinstance(kind, SplitK):
        for start, stop in split_ranges(len(pairs), kind.splits, kind.tile):
            c = _add(c, accumulate(pairs[start:stop], 0, kind.inner), kind.output)
        return c
    return _integer_chain(pairs, c, kind)


def _scaled(number: Number, scale: Number) -> Number:
    """A number times a power of two: the scale's exponent joins its own."""
    if scale.kind == "nan":
        return scale
    return replace(number, exponent=number.exponent + scale.exponent)


def dot(
    a: Sequence[int],
    b: Sequence[int],
    c: int,
    spec: MatmulSpec,
    scale_a: Sequence[int] = (),
    scale_b: Sequence[int] = (),
) -> int:
    """One output element: codes of a row of A and of a column of B, and the code of c, all as Python integers.

    scale_a, scale_b : codes of spec.scale per block of k; for scaled promotions, float32 codes per group.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} codes and b has {len(b)}; a dot product needs as many of each")
    pairs = [(decode(x, spec.a), decode(y, spec.b)) for x, y in zip(a, b, strict=True)]
    held_scale = spec.scale or "f32"
    scales = [(decode(x, held_scale), decode(y, held_scale)) for x, y in zip(scale_a, scale_b, strict=True)]
    result = accumulate(pairs, c, spec.accumulator, scales, spec.block or 1)
    held = container(spec.accumulator.output)
    if spec.out == held.name:
        return result
    return encode(decode(result, held), spec.out, "rne", "infinity", "ocp-nonsat")
