"""How a matrix engine adds up: accumulator kinds as frozen data, no code.

Each kind has its meaning in `fpsim.reference` (Python integers) and its kernel in `fpsim._kernels`. An accumulator says
everything about a dot product except its operand formats: how many products meet in one step, what is dropped when
they are aligned, when the sum is rounded and to what, and in which order k runs (ascending unless it says otherwise;
any other order is a permutation of K that the caller applies to both operands). Kinds nest: `Promoted` and `SplitK`
wrap another one.

Four families, by where they round:

- steps: `FusedDot` (exact with fraction_bits=None: Kulisch's accumulator), `TwoStageDot`, `GroupedDot` round once per
  step. Their overflow is Inf whatever the rounding, and an exact zero is +0, as the instructions do it.
- chains: `SequentialFma` and `PairwiseTree` round every operation as IEEE 754 does, into any signed float format.
- registers that round when they are read: `FixedPoint`.
- integers: `IntegerAccumulator`.

A float accumulator in a format without Inf overflows to NaN, without NaN to its largest value; what `overflow` names in
`fpsim.rounding` say otherwise. Every NaN result is the engine's one NaN (`fpsim.reference.engine_nan`).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from fpsim.formats import Format, scalar_format
from fpsim.rounding import overflow as find_overflow
from fpsim.rounding import rounding as find_rounding

IntegerOverflow = Literal["wrap", "saturate", "error"]
IntegerOrder = Literal["ascending", "pairwise"]
KOrder = Literal["ascending", "mod4-pairs"]


def _float_result(kind: str, output: str, rounding: str, overflow: str = "infinity") -> None:
    """Check what a float accumulator rounds to, and how."""
    row = scalar_format(output)
    if row.kind != "float" or not row.signed or not row.zero:
        raise ValueError(
            f"{kind}.output is {output!r}; allowed: a signed float format with a zero, such as 'f32', 'f16'"
        )
    if find_rounding(rounding).stochastic:
        raise ValueError(f"{kind}.rounding is {rounding!r}; allowed: a deterministic one, such as 'rne', 'rz'")
    find_overflow(overflow)


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
        _float_result("FusedDot", self.output, self.rounding)


@dataclass(frozen=True)
class SequentialFma:
    """One multiply-add per product, k by k, every operation rounded to `output` as IEEE 754 does.

    Fused, c = round(a*b + c): the FP64 and FP32 matrix units, a scalar processor. Not fused, c = round(round(a*b) + c).

    output, rounding : any signed float format, any deterministic rounding.
    order : "ascending", or "odd-even": within each pair the odd k first (x86 VDPBF16PS).
    flush : subnormal operands, starts and results count as zeros of their sign (DAZ and FTZ).
    fused, product : fused=False rounds the product first, to the format `product` ("" for `output`), in the same
        rounding and overflow.
    overflow : name of `fpsim.rounding`; "infinity" is IEEE 754, 7.4: a directed rounding that points to the finite side
        stops at the largest value. "saturate" keeps a narrow accumulator finite.
    """

    output: str = "f32"
    rounding: str = "rne"
    order: Literal["ascending", "odd-even"] = "ascending"
    flush: bool = False
    fused: bool = True
    product: str = ""
    overflow: str = "infinity"

    def __post_init__(self) -> None:
        _float_result("SequentialFma", self.output, self.rounding, self.overflow)
        if self.order not in ("ascending", "odd-even"):
            raise ValueError(f"SequentialFma.order is {self.order!r}; allowed: 'ascending', 'odd-even'")
        if self.fused and self.product:
            raise ValueError(
                f"SequentialFma.product is {self.product!r}, but a fused multiply-add does not round its product; "
                "say fused=False"
            )
        _float_result("SequentialFma", self.product or self.output, self.rounding)


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
    output, rounding, product, overflow : as in `SequentialFma`.
    """

    terms: int
    output: str = "f32"
    flush: bool = False
    rounding: str = "rne"
    product: str = ""
    overflow: str = "infinity"

    def __post_init__(self) -> None:
        if self.terms < 1 or self.terms & (self.terms - 1):
            raise ValueError(f"PairwiseTree.terms is {self.terms}; allowed: a power of two")
        _float_result("PairwiseTree", self.output, self.rounding, self.overflow)
        _float_result("PairwiseTree", self.product or self.output, self.rounding)


@dataclass(frozen=True)
class Promoted:
    """An inner accumulator that starts from zero and is added to an outer one every `every` products.

    The outer sum starts from c; one addition per promotion; the remainder of K is promoted last. `order` permutes k
    within each group of `every` products before the inner accumulator sees it: "mod4-pairs" takes k mod 4 in (0, 1)
    ascending, then k mod 4 in (2, 3).

    inner : any kind but another wrapper.
    output, rounding : the outer sum's float format. The inner result is converted to it (to nearest even, where it does
        not fit) and added by one IEEE addition in that rounding. An integer inner accumulator may be promoted so too.
    outer : instead, an integer accumulator around an integer one: tiles of `every` products in a narrow inner register,
        their results in a wider outer one that looks at overflow after every addition (the two levels of AXE,
        arXiv:2409.17092). `output` is then the outer's.
    operands : format that both operands are converted to, exactly, first ("" as they are).
    scaled : the promotion is a fused multiply-add with a float32 scale per group, outer = (scale_a * scale_b) * inner
        + outer (DeepGEMM).
    """

    inner: "FusedDot | TwoStageDot | SequentialFma | PairwiseTree | IntegerAccumulator"
    every: int
    output: str = "f32"
    order: KOrder = "ascending"
    operands: str = ""
    scaled: bool = False
    rounding: str = "rne"
    outer: "IntegerAccumulator | None" = None

    def __post_init__(self) -> None:
        _positive("Promoted", every=self.every)
        if self.order not in ("ascending", "mod4-pairs"):
            raise ValueError(f"Promoted.order is {self.order!r}; allowed: 'ascending', 'mod4-pairs'")
        if isinstance(self.inner, Promoted | SplitK | GroupedDot | FixedPoint):
            raise ValueError(
                f"Promoted.inner is {self.inner}; allowed: an accumulator that wraps no other, no GroupedDot, "
                "no FixedPoint"
            )
        if self.outer is None:
            _float_result("Promoted", self.output, self.rounding)
            return
        if (
            not isinstance(self.inner, IntegerAccumulator)
            or self.scaled
            or self.outer.step != 1
            or self.outer.step_bits
        ):
            raise ValueError(
                f"Promoted.outer is {self.outer} around {self.inner}; "
                "allowed: an IntegerAccumulator with step=1 around another one, without scales"
            )
        object.__setattr__(self, "output", self.outer.output)


@dataclass(frozen=True)
class SplitK:
    """K cut into `splits` contiguous ranges of ceil(tiles / splits) tiles of `tile` products.

    Each range is its own chain of `inner` from zero; the results are added to c in ascending order: floats in the
    container of the inner's output (float32) to nearest even, integers with the inner's (or its outer's) bits and
    overflow.
    """

    inner: "FusedDot | TwoStageDot | SequentialFma | PairwiseTree | Promoted | IntegerAccumulator"
    splits: int
    tile: int = 128

    def __post_init__(self) -> None:
        _positive("SplitK", splits=self.splits, tile=self.tile)
        if isinstance(self.inner, SplitK | GroupedDot | FixedPoint):
            raise ValueError(f"SplitK.inner is {self.inner}; allowed: any kind but SplitK, GroupedDot and FixedPoint")
        if isinstance(self.inner, Promoted) and self.inner.scaled:
            raise ValueError("SplitK around scaled promotions is not defined: no library splits them")

    @property
    def output(self) -> str:
        return self.inner.output


@dataclass(frozen=True)
class IntegerAccumulator:
    """A two's complement accumulator of `bits`.

    overflow : "wrap" modulo 2**bits; "saturate" after every addition (hence order matters); "error" raises
        OverflowError naming the first output that leaves the range.
    step : products that are added exactly, among themselves and to the accumulator, before overflow is looked at.
    step_bits : the sum of a step first saturates to this many bits (x86 VPMADDUBSW: pairs, 16).
    order : "ascending", or "pairwise": the products of a step (a power of two; K is filled up with zeros) meet in a
        tree of adders, and products, every sum in the tree and the sum with the accumulator each overflow by the rule.

    Results are int32 up to 32 bits, int64 above.
    """

    bits: int = 32
    overflow: IntegerOverflow = "wrap"
    step: int = 1
    step_bits: int | None = None
    order: IntegerOrder = "ascending"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 63:
            raise ValueError(f"IntegerAccumulator.bits is {self.bits}; allowed: 2 to 63")
        if self.overflow not in ("wrap", "saturate", "error"):
            raise ValueError(f"IntegerAccumulator.overflow is {self.overflow!r}; allowed: wrap, saturate, error")
        _positive("IntegerAccumulator", step=self.step, step_bits=self.step_bits)
        if self.order not in ("ascending", "pairwise"):
            raise ValueError(f"IntegerAccumulator.order is {self.order!r}; allowed: ascending, pairwise")
        if self.order == "pairwise" and (self.step & (self.step - 1) or self.step_bits is not None):
            raise ValueError(
                f"a pairwise IntegerAccumulator takes a step that is a power of two and no step_bits, got {self}"
            )

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def output(self) -> str:
        return "int32" if self.bits <= 32 else "int64"


@dataclass(frozen=True)
class FixedPoint:
    """A fixed-point register of `bits` in two's complement, of any width: Kulisch's, or one that is too narrow for it.

    Products are exact; what they have below the register's last bit is cut off, toward zero. So is c, which then meets
    `overflow` like a sum. Inf and NaN have no place in the register: they are remembered beside it, as in a sum of
    IEEE 754. Zero is read as +0.

    lsb : exponent of the last bit, 2**lsb. None: that of the smallest product, below which there is nothing to cut.
    overflow : "wrap" modulo 2**bits; "saturate" after every addition (hence order matters).
    rounding, output : of the one rounding when the register is read. Too large a value becomes Inf.
    """

    bits: int
    lsb: int | None = None
    overflow: Literal["wrap", "saturate"] = "wrap"
    rounding: str = "rne"
    output: str = "f32"

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise ValueError(f"FixedPoint.bits is {self.bits}; allowed: 2 or more")
        if self.lsb is not None and abs(self.lsb) > 2200:
            raise ValueError(f"FixedPoint.lsb is {self.lsb}; allowed: -2200 to 2200")
        if self.overflow not in ("wrap", "saturate"):
            raise ValueError(f"FixedPoint.overflow is {self.overflow!r}; allowed: wrap, saturate")
        _float_result("FixedPoint", self.output, self.rounding)

    def placed(self, a: Format, b: Format) -> "FixedPoint":
        """Itself with the last bit in numbers, for products of two formats. ValueError for a codebook without one."""
        if self.lsb is not None:
            return self
        if "codebook" in (a.kind, b.kind):
            raise ValueError(f"{a.name} x {b.name} have no smallest product: give FixedPoint(lsb=) its last bit")
        return replace(self, lsb=_last_bit(a) + _last_bit(b))


def _last_bit(row: Format) -> int:
    """Exponent of the last bit that any value of a format has."""
    return row.minimum_exponent - row.mantissa_bits if row.kind == "float" else -row.bias


Accumulator: TypeAlias = (
    FusedDot
    | GroupedDot
    | TwoStageDot
    | SequentialFma
    | PairwiseTree
    | Promoted
    | SplitK
    | FixedPoint
    | IntegerAccumulator
)
