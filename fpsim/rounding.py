"""Roundings, overflow policies and named conversions: what happens to every value that does not fit.

Nothing here is called just "nearest". A rounding says which neighbour an inexact value takes; an overflow policy says
what a result beyond the largest finite value becomes; a conversion is the named combination of the two with the fate of
NaN, which is how packages that disagree with each other can each be reproduced exactly.

Overflow is decided on the *rounded* value, as if the exponent were unbounded (IEEE 754-2019, 7.4). Subnormals are kept
and -0 keeps its sign where the format has a -0; where the code of -0 is NaN (FNUZ, P3109) or the format is unsigned or
an integer, it becomes +0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

from fpsim._names import unknown

NanRule = Literal["canonical", "signed", "signed-ones", "payload"]
NoNanRule = Literal["max", "zero", "opposite-zero"]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`code` is what kernels see. `stochastic` ones take explicit random bits (A, B, C of IEEE P3109)."""

    name: str
    code: int
    summary: str
    stochastic: bool = False


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """What a finite value beyond the range, and an infinite one, become."""

    name: str
    code: int
    summary: str


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """An overflow policy with a rule for NaN and for what the format has no room for.

    overflow : policy for every format, except those named in `overflow_of`.
    nan : "canonical" the positive quiet NaN; "signed" the same with the sign of the input; "signed-ones" every bit of
        exponent and mantissa set, sign kept; "payload" sign and high payload bits kept, made quiet (IEEE formats only;
        elsewhere as "signed").
    no_nan : what NaN becomes in a float format that has no NaN: "max" (+max, PTX cvt.satfinite), "zero" (+0), or
        "opposite-zero" (-0 for +NaN, +0 for -NaN). In integers NaN becomes 0 (PTX cvt, C undefined).
    negative : what a value that rounds below zero becomes in an unsigned format: 0 (the smallest value where there is
        no zero), NaN, or its magnitude.
    no_zero : what a zero becomes in a format without zero (E8M0).
    nearest_of : formats for which "rne" means another nearest rounding in that package.
    """

    name: str
    overflow: str
    overflow_of: tuple[tuple[str, str], ...] = ()
    nan: NanRule
    no_nan: NoNanRule
    negative: Literal["smallest", "nan", "magnitude"] = "smallest"
    no_zero: Literal["smallest", "nan"] = "smallest"
    nearest_of: tuple[tuple[str, str], ...] = ()
    summary: str

    def overflow_for(self, format_name: str) -> "Overflow":
        """The overflow policy for a format."""
        return overflow(dict(self.overflow_of).get(format_name, self.overflow))

    def rounding_for(self, format_name: str, wanted: "str | Rounding") -> "Rounding":
        """The rounding for a format when `wanted` is asked for."""
        row = rounding(wanted)
        return rounding(dict(self.nearest_of).get(format_name, row)) if row.name == "rne" else row


_ROUNDINGS = (
    Rounding(name="rne", code=0, summary="to nearest, ties to even (IEEE roundTiesToEven)"),
    Rounding(name="rz", code=1, summary="toward zero (truncation)"),
    Rounding(name="ru", code=2, summary="toward +inf"),
    Rounding(name="rd", code=3, summary="toward -inf (floor)"),
    Rounding(name="rna", code=4, summary="to nearest, ties away from zero (IEEE roundTiesToAway)"),
    Rounding(name="rnz", code=5, summary="to nearest, ties toward zero"),
    Rounding(name="rodd", code=6, summary="to odd: exact values stay, others take the neighbour with an odd code"),
    Rounding(
        name="sra",
        code=7,
        stochastic=True,
        summary="stochastic A: away if floor(d * 2**N) + R >= 2**N; d is the fraction of a step, R has N random bits",
    ),
    Rounding(
        name="srb",
        code=8,
        stochastic=True,
        summary="stochastic B: away if d * 2**N + R + 1/2 >= 2**N (half a random step up: less bias than A)",
    ),
    Rounding(
        name="src",
        code=9,
        stochastic=True,
        summary="stochastic C: as A with d * 2**N rounded to nearest even instead of down",
    ),
)

_OVERFLOWS = (
    Overflow(name="saturate", code=0, summary="the largest finite value, for infinite inputs too"),
    Overflow(name="propagate", code=1, summary="finite values saturate; infinite ones become Inf, else NaN, else max"),
    Overflow(
        name="infinity",
        code=2,
        summary="Inf, else NaN, else max; a directed rounding that points to the finite side gives max (IEEE 754, 7.4)",
    ),
    Overflow(name="nan", code=3, summary="NaN, for infinite inputs too; max if the format has no NaN"),
)

_CONVERSIONS = (
    Conversion(
        name="ocp-sat",
        overflow="saturate",
        nan="signed",
        no_nan="max",
        summary="OCP FP8 and MX, saturating: Inf and everything too large becomes the largest finite value",
    ),
    Conversion(
        name="ocp-nonsat",
        overflow="infinity",
        nan="signed",
        no_nan="max",
        summary="OCP FP8, non-saturating: E5M2 overflows to Inf, E4M3 to NaN",
    ),
    Conversion(
        name="ml_dtypes",
        overflow="infinity",
        nan="signed",
        no_nan="opposite-zero",
        negative="nan",
        no_zero="nan",
        nearest_of=(("e8m0", "rna"),),
        summary="ml_dtypes 0.5 astype: E4M3 overflows to NaN, FP6 and FP4 saturate, E8M0 of zero is NaN",
    ),
    Conversion(
        name="p3109",
        overflow="infinity",
        nan="canonical",
        no_nan="max",
        negative="nan",
        summary="IEEE P3109 projection with OvfInf; overflow='saturate' is its SatFinite, 'propagate' its SatPropagate",
    ),
    Conversion(
        name="torch",
        overflow="infinity",
        overflow_of=(("e4m3", "saturate"),),
        nan="signed-ones",
        no_nan="max",
        negative="magnitude",
        nearest_of=(("e8m0", "rna"),),
        summary="torch 2.13 CPU casts: E4M3 saturates (Inf too), E5M2 overflows to Inf, E8M0 drops the sign",
    ),
)

_Row = TypeVar("_Row", Rounding, Overflow, Conversion)


def _by_name(rows: tuple[_Row, ...]) -> Mapping[str, _Row]:
    return MappingProxyType({row.name: row for row in rows})


ROUNDINGS: Mapping[str, Rounding] = _by_name(_ROUNDINGS)
OVERFLOWS: Mapping[str, Overflow] = _by_name(_OVERFLOWS)
CONVERSIONS: Mapping[str, Conversion] = _by_name(_CONVERSIONS)


def rounding(name: str | Rounding) -> Rounding:
    """The rounding called `name`; ValueError names the known ones."""
    return name if isinstance(name, Rounding) else _find("rounding", name, ROUNDINGS)


def overflow(name: str | Overflow) -> Overflow:
    """The overflow policy called `name`; ValueError names the known ones."""
    return name if isinstance(name, Overflow) else _find("overflow policy", name, OVERFLOWS)


def conversion(name: str | Conversion) -> Conversion:
    """The conversion called `name`; ValueError names the known ones."""
    return name if isinstance(name, Conversion) else _find("conversion", name, CONVERSIONS)


def _find(kind: str, name: str, table: Mapping[str, _Row]) -> _Row:
    row = table.get(name)
    if row is None:
        raise unknown(kind, name, table)
    return row
