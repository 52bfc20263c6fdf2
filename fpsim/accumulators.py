"""How a matrix engine adds up: accumulator kinds as frozen data, no code.

Each kind has its meaning in `fpsim.reference` (Python integers) and its kernel in `fpsim._kernels`. An accumulator says
everything about a dot product except its operand formats: how many products meet in one step, what is dropped when
they are aligned, when the sum is rounded and to what, and in which order k runs (ascending unless it says otherwise).
Kinds nest: `Promoted` and `SplitK` wrap another one.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

IntegerOverflow = Literal["wrap", "saturate", "error"]
KOrder = Literal["ascending", "mod4-pairs"]


def _positive(kind: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{kind}.{name} is {value}; allowed: 1 or more")


@dataclass(frozen=True)
class FusedDot:
    """Truncated fused dot-product-add (T-FDPA, arXiv:2511.10909 Algorithm 7), chained over k.

    terms : products per step (L); the step's rounded result is the c of the next. None: all of K in one step.
    fraction_bits : each term is truncated toward zero at 2**(largest exponent - fraction_bits) (F). None: exact.
    rounding, output : the one rounding of the exact sum; an output narrower than its container is named by its fields
        ("e8m13" lives in a float32).
    zero_exponent : the exponent a zero term counts with, hence a floor on the largest one. None: zeros do not count.
    """

    terms: int | None
    fraction_bits: int | None
    rounding: str = "rz"
    output: str = "f32"
    zero_exponent: int | None = None

    def __post_init__(self) -> None:
        _positive("FusedDot", terms=self.terms, fraction_bits=self.fraction_bits)


@dataclass(frozen=True)
class SequentialFma:
    """One fused multiply-add per product, k ascending: c = round(a*b + c). The FP64 and FP32 matrix units."""

    output: str = "f32"
    rounding: str = "rne"


@dataclass(frozen=True)
class Promoted:
    """An inner accumulator that starts from +0 and is added to an outer one every `every` products.

    The outer sum starts from c; one IEEE addition (rounding to nearest even, in `output`) per promotion; the remainder
    of K is promoted last. `order` permutes k within each group of `every` products before the inner accumulator sees
    it: "mod4-pairs" takes k mod 4 in (0, 1) ascending, then k mod 4 in (2, 3).
    """

    inner: "FusedDot"
    every: int
    output: str = "f32"
    order: KOrder = "ascending"

    def __post_init__(self) -> None:
        _positive("Promoted", every=self.every)


@dataclass(frozen=True)
class SplitK:
    """K cut into `splits` contiguous ranges of ceil(tiles / splits) tiles of `tile` products.

    Each range is its own chain of `inner` from zero; the results are added in ascending order in float32, to nearest
    even.
    """

    inner: "FusedDot | Promoted"
    splits: int
    tile: int = 128

    def __post_init__(self) -> None:
        _positive("SplitK", splits=self.splits, tile=self.tile)

    @property
    def output(self) -> str:
        return self.inner.output


@dataclass(frozen=True)
class IntegerAccumulator:
    """A two's complement accumulator of `bits`, one product at a time, k ascending.

    overflow : "wrap" modulo 2**bits; "saturate" after every addition (hence order matters); "error" raises
        OverflowError naming the first output that leaves the range.
    """

    bits: int = 32
    overflow: IntegerOverflow = "wrap"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ValueError(f"IntegerAccumulator.bits is {self.bits}; allowed: 2 to 32")
        if self.overflow not in ("wrap", "saturate", "error"):
            raise ValueError(f"IntegerAccumulator.overflow is {self.overflow!r}; allowed: wrap, saturate, error")

    @property
    def output(self) -> str:
        return "int32"


Accumulator: TypeAlias = FusedDot | SequentialFma | Promoted | SplitK | IntegerAccumulator
