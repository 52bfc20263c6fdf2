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

NanRule = Literal["canonical", "signed", "payload"]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`code` is what kernels see. `stochastic` ones take explicit random bits."""

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
    """An overflow policy with a rule for NaN.

    nan : "canonical" the positive quiet NaN; "signed" the same with the sign of the input; "payload" sign and the high
        payload bits, made quiet.
    no_nan_code : what NaN becomes in a format that has no NaN: "max" (positive), "zero", or "negative-zero".
    """

    name: str
    overflow: str
    nan: NanRule
    no_nan: Literal["max", "zero", "negative-zero", "signed-max"]
    summary: str


_ROUNDINGS = (
    Rounding(name="rne", code=0, summary="to nearest, ties to even (IEEE roundTiesToEven)"),
    Rounding(name="rz", code=1, summary="toward zero (truncation)"),
    Rounding(name="ru", code=2, summary="toward +inf"),
    Rounding(name="rd", code=3, summary="toward -inf (floor)"),
    Rounding(name="rna", code=4, summary="to nearest, ties away from zero (IEEE roundTiesToAway)"),
    Rounding(name="rnz", code=5, summary="to nearest, ties toward zero"),
    Rounding(name="rodd", code=6, summary="to odd: exact values stay, others take the neighbour with an odd code"),
)

_OVERFLOWS = (
    Overflow(name="saturate", code=0, summary="the largest finite value, for infinite inputs too"),
    Overflow(name="propagate", code=1, summary="finite values saturate, infinite ones stay infinite (NaN if no Inf)"),
    Overflow(name="infinity", code=2, summary="Inf; NaN if the format has no Inf; the largest finite value if neither"),
    Overflow(name="nan", code=3, summary="NaN, for infinite inputs too; the largest finite value if there is none"),
)

_CONVERSIONS = (
    Conversion(
        name="ocp-sat",
        overflow="saturate",
        nan="signed",
        no_nan="max",
        summary="OCP FP8 and MX saturating conversion; NaN into FP6, FP4 and integers is undefined there: here +max",
    ),
    Conversion(
        name="ocp-nonsat",
        overflow="infinity",
        nan="signed",
        no_nan="max",
        summary="OCP FP8 non-saturating conversion: E5M2 overflows to Inf, E4M3 to NaN",
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
