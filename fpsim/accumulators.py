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
    """One fused multiply-add per product: c = round(a*b + c). The FP64 and FP32 matrix units.

    order : "ascending", or "odd-even": within each pair the odd k first (x86 VDPBF16PS).
    flush : subnormal operands, starts and results count as zeros of their sign (DAZ and FTZ).
    """

    output: str = "f32"
    rounding: str = "rne"
    order: Literal["ascending", "odd-even"] = "ascending"
    flush: bool = False


@dataclass(frozen=True)
class GroupedDot:
    """Block-scaled FP4: arXiv:2511.10909, GST-FDPA. `groups` groups of `group` products meet in one step.

    The products of a group are summed exactly; times the two scales they are one term, whose exponent is the sum of
    the scales' exponents (the sum is not renormalised; a group of nothing but zeros, or a zero scale, counts with
    `zero_exponent`). Terms and c are truncated toward zero at 2**(largest exponent - fraction_bits) and added.
    """

    group: int = 16
    groups: int = 4
    fraction_bits: int = 35
    rounding: str = "rz"
    output: str = "f32"
    zero_exponent: int | None = -139

    def __post_init__(self) -> None:
        _positive("GroupedDot", group=self.group, groups=self.groups, fraction_bits=self.fraction_bits)


@dataclass(frozen=True)
class TwoStageDot:
    """CDNA3: products first, c second (arXiv:2511.10909, TR-FDPA; `interleaved` is GTR-FDPA).

    The products of a step are truncated toward zero at 2**(their largest exponent - fraction_bits) and summed;
    interleaved: even and odd k apart, the two sums then aligned with floor at `fraction_bits`. That sum, floored at
    sum_fraction_bits + 1 bits, and c, floored at fraction_bits, are aligned and added; the result is floored at
    sum_fraction_bits after normalisation and rounded to nearest even. A product of magnitude 2**128 or more is Inf.
    Interleaved engines drop c when its exponent is more than fraction_bits + 1 below the largest.
    """

    terms: int
    fraction_bits: int = 24
    sum_fraction_bits: int = 31
    interleaved: bool = False
    output: str = "f32"

    def __post_init__(self) -> None:
        _positive("TwoStageDot", terms=self.terms, fraction_bits=self.fraction_bits)


@dataclass(frozen=True)
class PairwiseTree:
    """Products rounded to `output`, added pairwise in a tree of `terms`, then to c: every addition rounds.

    CDNA2 with flush: subnormal operands and starts become +0, subnormal products and sums zeros of their sign.
    """

    terms: int
    output: str = "f32"
    flush: bool = False

    def __post_init__(self) -> None:
        if self.terms < 1 or self.terms & (self.terms - 1):
            raise ValueError(f"PairwiseTree.terms is {self.terms}; allowed: a power of two")


@dataclass(frozen=True)
class Promoted:
    """An inner accumulator that starts from +0 and is added to an outer one every `every` products.

    The outer sum starts from c; one IEEE addition (rounding to nearest even, in `output`) per promotion; the remainder
    of K is promoted last. `order` permutes k within each group of `every` products before the inner accumulator sees
    it: "mod4-pairs" takes k mod 4 in (0, 1) ascending, then k mod 4 in (2, 3).

    operands : format that both operands are converted to, exactly, first ("" as they are).
    scaled : the promotion is a fused multiply-add with a float32 scale per group, outer = (scale_a * scale_b) * inner
        + outer (DeepGEMM).
    """

    inner: "FusedDot"
    every: int
    output: str = "f32"
    order: KOrder = "ascending"
    operands: str = ""
    scaled: bool = False

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
    """A two's complement accumulator of `bits`, k ascending.

    overflow : "wrap" modulo 2**bits; "saturate" after every addition (hence order matters); "error" raises
        OverflowError naming the first output that leaves the range.
    step : products that are added exactly, among themselves and to the accumulator, before overflow is looked at.
    step_bits : the sum of a step first saturates to this many bits (x86 VPMADDUBSW: pairs, 16).
    """

    bits: int = 32
    overflow: IntegerOverflow = "wrap"
    step: int = 1
    step_bits: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise ValueError(f"IntegerAccumulator.bits is {self.bits}; allowed: 2 to 32")
        if self.overflow not in ("wrap", "saturate", "error"):
            raise ValueError(f"IntegerAccumulator.overflow is {self.overflow!r}; allowed: wrap, saturate, error")
        _positive("IntegerAccumulator", step=self.step, step_bits=self.step_bits)

    @property
    def output(self) -> str:
        return "int32"


Accumulator: TypeAlias = (
    FusedDot | GroupedDot | TwoStageDot | SequentialFma | PairwiseTree | Promoted | SplitK | IntegerAccumulator
)
