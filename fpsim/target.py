"""What a kernel is told of a float format: its named choices flattened into integers, and which fast road takes it."""

from fpsim._kernels.scalar import SRA, FloatTarget
from fpsim.formats import Format
from fpsim.rounding import Conversion, Overflow, Rounding


def float_target(row: Format, how: Rounding, policy: Overflow, named: Conversion) -> FloatTarget:
    """Flatten a format and its named choices into the integers the kernels take."""
    sign = row.sign_bit
    nan = _nan_codes(row, named)
    beyond = tuple(
        {
            "saturate": (_signed(row, row.max_code, negative),) * 2,
            "propagate": (_signed(row, row.max_code, negative), _infinite(row, nan, negative)),
            "infinity": (
                _signed(row, row.max_code, negative) if _inward(how, negative) else _infinite(row, nan, negative),
                _infinite(row, nan, negative),
            ),
            "nan": (_signed(row, row.max_code, negative) if row.nan_code is None else nan[int(negative)],) * 2,
        }[policy.name]
        for negative in (False, True)
    )
    no_zero = 0 if row.zero or named.no_zero == "smallest" else nan[0]
    unsigned = not row.signed and named.negative != "magnitude"
    below = nan[1] if named.negative == "nan" else 0
    return FloatTarget(
        mantissa_bits=row.mantissa_bits,
        minimum_exponent=row.minimum_exponent,
        base=0 if row.zero else -(1 << row.mantissa_bits),
        max_code=row.max_code,
        rounding=how.code,
        sign_bit=sign,
        negative_zero=(0 if row.nan == "negative-zero" else sign) if row.zero else no_zero,
        zero=no_zero,
        overflow=beyond[0][0],
        negative_overflow=below if unsigned else beyond[1][0],
        infinity=beyond[0][1],
        negative_infinity=below if unsigned else beyond[1][1],
        nan=nan[0],
        negative_nan=nan[1],
        payload_shift=52 - row.mantissa_bits if named.nan == "payload" and row.nan == "ieee" else 63,
        unsigned=int(unsigned),
        negative=below,
        shift=row.shift,
    )


def _signed(row: Format, code: int, negative: bool) -> int:
    return code | (row.sign_bit if negative else 0)


def _inward(how: Rounding, negative: bool) -> bool:
    """Whether a directed rounding takes a too large value to the largest finite one instead of beyond it."""
    return how.name in ("rz", "rodd") or how.name == ("ru" if negative else "rd")


def _infinite(row: Format, nan: tuple[int, int], negative: bool) -> int:
    if row.infinity_code is not None:
        return _signed(row, row.infinity_code, negative)
    return _signed(row, row.max_code, negative) if row.nan_code is None else nan[negative]


def _nan_codes(row: Format, named: Conversion) -> tuple[int, int]:
    """What NaN and -NaN become."""
    if row.nan_code is None:
        choices = {
            "max": (row.max_code, row.max_code),
            "zero": (0, 0),
            "opposite-zero": (row.sign_bit, 0),
        }
        return choices[named.no_nan]
    if row.nan == "negative-zero" or named.nan == "canonical":
        return row.nan_code, row.nan_code
    code = row.nan_code
    if named.nan == "signed-ones" and row.nan == "ieee":
        code = (1 << (row.exponent_bits + row.mantissa_bits)) - 1
    return code, code | row.sign_bit


def symmetric(row: FloatTarget) -> bool:
    """Whether codes are a sign and a magnitude of at most 16 bits rounded to nearest even: what the fast roads do."""
    return (
        row.rounding == 0
        and row.base == 0
        and row.unsigned == 0
        and row.shift == 0
        and row.payload_shift == 63
        and row.sign_bit in (1 << b for b in range(3, 16))
        and row.negative_overflow == row.overflow | row.sign_bit
        and row.negative_infinity == row.infinity | row.sign_bit
        and row.negative_nan in (row.nan | row.sign_bit, row.nan)
    )


def narrow(row: FloatTarget) -> bool:
    """Whether `cpu.encode_words` covers the target: a deterministic rounding of float32 to at most 16 bits."""
    return row.rounding < SRA and row.shift == 0 and row.payload_shift == 63 and row.minimum_exponent >= -126


def addition_top(row: FloatTarget) -> int | None:
    """float32 bits of the largest magnitude `cpu.encode_by_addition` is to see, None where it does not apply."""
    if row.overflow != row.infinity or not 0 <= row.overflow - row.max_code <= 1 or row.mantissa_bits < 1:
        return None
    fraction = row.overflow & ((1 << row.mantissa_bits) - 1)
    exponent = (row.overflow >> row.mantissa_bits) - 1 + row.minimum_exponent
    if row.minimum_exponent < -126 or exponent + 23 - row.mantissa_bits > 127 or exponent < row.minimum_exponent:
        return None
    return (exponent + 127) << 23 | fraction << (23 - row.mantissa_bits)
