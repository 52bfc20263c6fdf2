"""Number formats as data: one frozen row each, everything else derived from it.

A *float* format is a sign bit (or none), an exponent field and a mantissa field. Non-negative codes are in the order of
their values, so the few places where formats differ are facts about the top of that order and about the code of
negative zero:

- ``nan="ieee"``: the top exponent is reserved; its zero mantissa is Inf, the others are NaN (FP16, E5M2).
- ``nan="all-ones"``: only the top code of each sign is NaN (OCP E4M3).
- ``nan="negative-zero"``: the code that would be -0 is the one NaN (the FNUZ formats and signed P3109).
- ``nan="top"``: the very last code is NaN (E8M0, unsigned P3109).
- ``nan="none"``: every code is a number (OCP FP6 and FP4).

An *int* format is a two's complement or unsigned integer times ``2**-bias`` (fixed point; ``bias`` is 0 for integers).
A *codebook* lists its values. A block format is an element format, a scale format, a block length and the rule that
chooses the scale from the values of a block.

To add a format, add a row (docs/formats.md shows one). Names are lower case; `format` also takes the aliases fp64,
fp32, fp16, and parametric names that need no row (FAMILIES).
Sources: OCP 8-bit Floating Point Specification 1.0 (2023); OCP Microscaling Formats (MX) Specification 1.0 (2023);
IEEE 754-2019; PTX ISA 8.7 (ue4m3, tf32); "NVFP4": NVIDIA, Introducing NVFP4 (2025); FNUZ: Noune et al.,
arXiv:2206.02915; IEEE SA P3109 interim report (2025).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from fpsim._names import unknown

Kind = Literal["float", "int", "codebook"]
NanStyle = Literal["ieee", "all-ones", "negative-zero", "top", "none"]
ScaleRule = Literal["floor", "ceil", "rceil", "even", "mse", "amax", "four-over-six", "range"]

#: Rules that may be asked for in each other's place: powers of two, floats, asymmetric ones (`fpsim.blocks.RULES`).
_SCALE_RULES: tuple[tuple[ScaleRule, ...], ...] = (
    ("floor", "ceil", "rceil", "even", "mse"),
    ("amax", "four-over-six"),
    ("range",),
)


def alike(rule: ScaleRule) -> tuple[ScaleRule, ...]:
    """The rules that may be asked for in place of `rule`, itself included."""
    return next(kind for kind in _SCALE_RULES if rule in kind)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A scalar format. The fields are the primitive facts; bits, range and code layout follow from them."""

    name: str
    kind: Kind = "float"
    exponent_bits: int = 0
    mantissa_bits: int = 0  #: explicit fraction bits of a float; magnitude bits of an integer
    bias: int = 0  #: float: value = 1.f * 2**(field - bias); int: value = code * 2**-bias
    signed: bool = True
    nan: NanStyle = "none"
    infinities: bool = False
    zero: bool = True  #: False: exponent field 0 is an ordinary power of two (E8M0)
    pad_bits: int = 0  #: high bits of the stored code that carry nothing
    shift: int = 0  #: low bits of the stored code that carry nothing (TF32 lives in the high bits of a float32)
    container: str = ""  #: the wider format whose codes hold this one, "" for itself
    narrow: bool = False  #: int: the most negative code is not used
    values: tuple[float, ...] = ()  #: codebook: the value of each code
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind == "codebook":
            if not self.values or any(b <= a for a, b in zip(self.values, self.values[1:], strict=False)):
                raise ValueError(f"codebook {self.name!r} needs strictly ascending values, got {self.values}")
        elif self.exponent_bits + self.mantissa_bits < 1:
            raise ValueError(f"format {self.name!r} has neither exponent nor mantissa bits")
        if self.kind == "float" and not 1 <= self.exponent_bits <= 11:
            raise ValueError(f"float format {self.name!r} has {self.exponent_bits} exponent bits; allowed: 1 to 11")

    @property
    def bits(self) -> int:
        """Storage bits of one code, padding included."""
        if self.kind == "codebook":
            return max(1, (len(self.values) - 1).bit_length())
        return int(self.signed) + self.exponent_bits + self.mantissa_bits + self.pad_bits

    @property
    def bits_per_element(self) -> float:
        return float(self.bits)

    @property
    def code_dtype(self) -> str:
        """numpy dtype name that holds one code: unsigned for floats, the integer itself for integers."""
        width = next(w for w in (8, 16, 32, 64) if self.bits + self.shift <= w)
        return f"{'int' if self.kind == 'int' and self.signed else 'uint'}{width}"

    @property
    def value_dtype(self) -> str:
        """numpy dtype name that holds every value exactly."""
        return "float64" if self.precision > 24 or self.exponent_bits > 8 else "float32"

    @property
    def precision(self) -> int:
        """Significant bits of a normal value (leading one included); magnitude bits of an integer."""
        return self.mantissa_bits + 1 if self.kind == "float" else self.bits - int(self.signed and self.kind == "int")

    @property
    def sign_bit(self) -> int:
        """Mask of the sign in a float code; 0 for an unsigned format."""
        return 1 << (self.exponent_bits + self.mantissa_bits) if self.signed and self.kind == "float" else 0

    @property
    def minimum_exponent(self) -> int:
        """Exponent of the smallest normal value, shared by the subnormals (and by zero)."""
        return 1 - self.bias if self.zero else -self.bias

    @cached_property
    def infinity_code(self) -> int | None:
        """Code of +Inf, None if the format has none."""
        if not self.infinities:
            return None
        if self.nan == "ieee":
            return ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return top - 1 if self.nan in ("top", "all-ones") else top

    @cached_property
    def nan_code(self) -> int | None:
        """The canonical (positive, quiet) NaN; None if the format has none."""
        magnitude = self.exponent_bits + self.mantissa_bits
        if self.nan == "none":
            return None
        if self.nan == "negative-zero":
            return 1 << magnitude
        if self.nan == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) | (1 << max(self.mantissa_bits - 1, 0))
        return (1 << magnitude) - 1

    @cached_property
    def max_code(self) -> int:
        """Code of the largest finite value."""
        if self.kind == "codebook":
            return len(self.values) - 1
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.nan == "ieee":
            return (((1 << self.exponent_bits) - 1) << self.mantissa_bits) - 1
        return top - int(self.nan in ("all-ones", "top")) - int(self.infinities)

    def magnitude(self, code: int) -> float:
        """Value of a non-negative finite code (sign bit clear)."""
        if self.kind == "codebook":
            return self.values[code]
        if self.kind == "int":
            return math.ldexp(code, -self.bias)
        field, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if field == 0 and self.zero:
            return math.ldexp(mantissa, 1 - self.bias - self.mantissa_bits)
        return math.ldexp((1 << self.mantissa_bits) + mantissa, field - self.bias - self.mantissa_bits)

    @cached_property
    def max(self) -> float:
        return self.magnitude(self.max_code)

    @cached_property
    def min(self) -> float:
        """The most negative value (0 for unsigned formats)."""
        if self.kind == "codebook":
            return self.values[0]
        if not self.signed:
            return 0.0 if self.zero else self.magnitude(0)
        if self.kind == "int":
            return math.ldexp(int(self.narrow) - (1 << self.mantissa_bits), -self.bias)
        return -self.max

    @property
    def smallest_normal(self) -> float:
        if self.kind != "float":
            return self.smallest_subnormal
        return math.ldexp(1.0, self.minimum_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value (the smallest normal one where there are no subnormals)."""
        if self.kind == "codebook":
            return next(v for v in self.values if v > 0)
        return self.magnitude(1) if self.zero else self.magnitude(0)


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """Elements that share one scale per `block` consecutive values of an axis.

    ``tensor_scale``: a second float32 scale for the whole tensor (NVFP4's two levels).
    ``rule``: how the scale is chosen from the block when the caller does not say.
    """

    name: str
    element: Format
    scale: Format
    block: int
    rows: int = 1  #: the block is `rows` x `block`; rows run along the last other axis (NVFP4 weights: 16 x 16)
    tensor_scale: bool = False
    scale_top: float = 0.0  #: block scale that the tensor scale gives the largest block; 0: the scale's largest value
    zero_point: Format | None = None  #: asymmetric integers: the code of zero, one per block
    rule: ScaleRule = "floor"
    source: str = ""

    def __post_init__(self) -> None:
        if self.block < 1 or self.rows < 1:
            raise ValueError(f"block format {self.name!r} has block {self.rows} x {self.block}; allowed: 1 or more")
        if (self.zero_point is not None) != (self.rule == "range"):
            raise ValueError(f"block format {self.name!r}: a zero point and rule 'range' go together")

    @property
    def bits_per_element(self) -> float:
        """Storage per value with its share of the block's scale and zero point.

        The tensor scale is negligible and left out; a 2-D block stores its scale once.
        """
        shared = self.scale.bits + (self.zero_point.bits if self.zero_point else 0)
        return self.element.bits + shared / (self.block * self.rows)

    @property
    def max(self) -> float:
        """Largest value at the largest scale."""
        return self.element.max * self.scale.max

    @property
    def summary(self) -> str:
        """One line: what shares what."""
        size = f"{self.rows} x {self.block}" if self.rows > 1 else f"{self.block}"
        zero = f" and {self.zero_point.name} zero points" if self.zero_point else ""
        second = ", float32 tensor scale" if self.tensor_scale else ""
        chosen = f", {self.rule}" if self.rule == "four-over-six" else ""
        return f"{self.element.name} in blocks of {size}, {self.scale.name} scales{zero}{second}{chosen}"


_OCP_FP8 = "OCP 8-bit Floating Point Specification 1.0 (2023-12)"
_OCP_MX = "OCP Microscaling Formats Specification 1.0 (2023-09)"
_FNUZ = "Noune et al., arXiv:2206.02915"
_IEEE = "IEEE 754-2019"


def ieee_float(name: str, exponent_bits: int, mantissa_bits: int, source: str = _IEEE, in_f32: bool = False) -> Format:
    """An IEEE-style format: bias 2**(E-1)-1, subnormals, the top exponent reserved for Inf and NaN.

    in_f32 : its codes are float32 bit patterns whose low mantissa bits carry nothing.
    """
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=(1 << (exponent_bits - 1)) - 1,
        nan="ieee",
        infinities=True,
        shift=23 - mantissa_bits if in_f32 else 0,
        container="f32" if in_f32 else "",
        source=source,
    )


def finite_float(
    name: str, exponent_bits: int, mantissa_bits: int, *, signed: bool = True, source: str = _OCP_MX
) -> Format:
    """A format whose every code is a number, bias 2**(E-1)-1 (1 for E = 1 as well)."""
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=max((1 << (exponent_bits - 1)) - 1, 1),
        signed=signed,
        source=source,
    )


def free_float(unsigned: str, exponent: str, mantissa: str, bias: str | None) -> Format:
    """e3m4-finite, ue2m2-finite: every code a number; e3m4-bias5: the same with another bias (any integer).

    A real-valued bias B is `quantize(x, fmt, scale=2**(fmt.bias - B))`.
    """
    name = f"{unsigned}e{exponent}m{mantissa}"
    source = "arXiv:2408.06995: formats and biases searched for per layer"
    row = finite_float(f"{name}-finite", int(exponent), int(mantissa), signed=not unsigned, source=source)
    return row if bias is None else replace(row, name=f"{name}-bias{int(bias)}", bias=int(bias))


def fnuz_float(name: str, exponent_bits: int, mantissa_bits: int, bias: int, source: str = _FNUZ) -> Format:
    """Finite, NaN in the place of -0."""
    return Format(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        nan="negative-zero",
        source=source,
    )


def integer(bits: int, *, signed: bool = True, narrow: bool = False, fraction_bits: int = 0) -> Format:
    """int8, uint4, int8-narrow (symmetric: -127..127), int8.4 (fixed point: 4 of the 8 bits are fraction)."""
    if not 1 + int(signed) <= bits <= 32 and bits != 64:  # 64: what wide integer accumulators return
        raise ValueError(f"integers have {1 + int(signed)} to 32 bits, or 64, got {bits}")
    name = f"{'int' if signed else 'uint'}{bits}{f'.{fraction_bits}' if fraction_bits else ''}"
    return Format(
        name=f"{name}-narrow" if narrow else name,
        kind="int",
        mantissa_bits=bits - int(signed),
        bias=fraction_bits,
        signed=signed,
        narrow=narrow,
        source="two's complement" if signed else "binary",
    )


def p3109(width: int, precision: int, *, signed: bool = True, extended: bool = True) -> Format:
    """binary{K}p{P}{s|u}{e|f} of IEEE P3109: one NaN, no -0, bias in the middle of the exponent range.

    width K >= 3; 1 <= precision P < K if signed, <= K if unsigned. Extended formats have Inf next to the top.
    """
    if width < 3 or not 1 <= precision <= width - int(signed):
        raise ValueError(f"P3109 has no format with K={width}, P={precision}, signed={signed}: K >= 3 and 1 <= P < K")
    exponent_bits = width - precision + int(not signed)
    return Format(
        name=f"binary{width}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}",
        exponent_bits=exponent_bits,
        mantissa_bits=precision - 1,
        bias=1 << (exponent_bits - 1),
        signed=signed,
        nan="negative-zero" if signed else "top",
        infinities=extended,
        source="IEEE SA P3109 interim report (2025)",
    )


_SCALARS = (
    ieee_float("f64", 11, 52),
    ieee_float("f32", 8, 23),
    ieee_float(
        "tf32", 8, 10, source="NVIDIA A100 whitepaper (2020); 19 bits, kept in the high bits of a float32", in_f32=True
    ),
    ieee_float("xf32", 8, 10, source="AMD CDNA3 ISA (2023): the operand format of the xf32 MFMA", in_f32=True),
    ieee_float("e8m13", 8, 13, source="accumulator of Hopper/Ada FP8, arXiv:2511.10909 table 7", in_f32=True),
    ieee_float("bf16", 8, 7, source="Intel BFLOAT16 hardware numerics definition (2018)"),
    ieee_float("f16", 5, 10),
    Format(name="e4m3", exponent_bits=4, mantissa_bits=3, bias=7, nan="all-ones", source=_OCP_FP8),
    ieee_float("e5m2", 5, 2, source=_OCP_FP8),
    ieee_float("e3m4", 3, 4, source="ml_dtypes float8_e3m4 (IEEE-like)"),
    ieee_float("e4m3-ieee", 4, 3, source="ml_dtypes float8_e4m3 (IEEE-like)"),
    fnuz_float("e4m3fnuz", 4, 3, 8),
    fnuz_float("e5m2fnuz", 5, 2, 16),
    fnuz_float("e4m3b11fnuz", 4, 3, 11, source="ml_dtypes float8_e4m3b11fnuz"),
    finite_float("e2m3", 2, 3),
    finite_float("e3m2", 3, 2),
    finite_float("e2m1", 2, 1),
    Format(name="e8m0", exponent_bits=8, bias=127, signed=False, nan="top", zero=False, source=_OCP_MX),
    Format(
        name="ue4m3",
        exponent_bits=4,
        mantissa_bits=3,
        bias=7,
        signed=False,
        nan="all-ones",
        pad_bits=1,
        source="PTX ISA 8.7: E4M3 whose sign bit is ignored; the NVFP4 block scale",
    ),
    *(
        finite_float(f"ue{e}m{m}", e, m, signed=False, source="one-sided activations: the sign bit goes to the value")
        for e, m in ((5, 3), (4, 4), (3, 5), (2, 6), (3, 3), (2, 4), (3, 1), (2, 2))
    ),
    Format(
        name="nf4",
        kind="codebook",
        values=(
            *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
            *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
            *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
            *(0.7229568362236023, 1.0),
        ),
        source="QLoRA, arXiv:2305.14314, appendix E",
    ),
    *(integer(bits) for bits in (*range(2, 17), 24, 32)),
    *(integer(bits, signed=False) for bits in (*range(1, 17), 32)),
)


def _table(rows: Iterable[Format]) -> dict[str, Format]:
    table: dict[str, Format] = {}
    for row in rows:
        if row.name in table:
            raise ValueError(f"format {row.name!r} is in the table twice")
        table[row.name] = row
    return table


_BY_NAME = _table(_SCALARS)


def _mx(name: str, element: str) -> BlockFormat:
    return BlockFormat(name=name, element=_BY_NAME[element], scale=_BY_NAME["e8m0"], block=32, source=_OCP_MX)


def _nvfp4(name: str, source: str, *, rows: int = 1, rule: ScaleRule = "amax", scale_top: float = 0.0) -> BlockFormat:
    return BlockFormat(
        name=name,
        element=_BY_NAME["e2m1"],
        scale=_BY_NAME["ue4m3"],
        block=16,
        rows=rows,
        tensor_scale=True,
        scale_top=scale_top,
        rule=rule,
        source=source,
    )


def block_floating_point(bits: int, block: int, name: str = "", source: str = "") -> BlockFormat:
    """A shared exponent and signed integer mantissas of `bits` bits, sign included: bfp8-b16.

    The exponent is that of the block's largest magnitude, so mantissas are of the form i.fff below 2 in magnitude;
    they are rounded to nearest even and saturate, and the range is symmetric (sign and magnitude).
    """
    return BlockFormat(
        name=name or f"bfp{bits}-b{block}",
        element=integer(bits, narrow=True, fraction_bits=bits - 2),
        scale=_BY_NAME["e8m0"],
        block=block,
        source=source or "block floating point: Wilkinson, Rounding Errors in Algebraic Processes (1963)",
    )


def grouped(element: str, group: int, scale: str = "f16") -> BlockFormat:
    """Elements under one float scale per `group` values: int4-g128, uint4-g64 (asymmetric), nf4-g64-f32, e2m1-g32-bf16.

    The scale is amax / (largest element). Unsigned integers are asymmetric: the scale is (max - min) / (2**n - 1) over
    a range that includes zero, and a zero point in the element's format is kept per group.
    """
    row = _BY_NAME.get(element) or scalar_format(element)
    asymmetric = row.kind == "int" and not row.signed
    return BlockFormat(
        name=f"{row.name}-g{group}{'' if scale == 'f16' else f'-{scale}'}",
        element=row,
        scale=_BY_NAME[scale],
        block=group,
        zero_point=row if asymmetric else None,
        rule="range" if asymmetric else "amax",
        source="per-group scales as in GPTQ (arXiv:2210.17323) and QLoRA (arXiv:2305.14314); scale kept in " + scale,
    )


#: MSFP-n names exponent (8) + sign + mantissa bits; boxes of 16. The paper leaves the rounding open: nearest even here.
_MSFP = "Rouhani et al., Pushing the Limits of Narrow Precision Inferencing ... with Microsoft Floating Point (2020)"


_BLOCKS = (
    _mx("mxfp8", "e4m3"),
    _mx("mxfp8-e5m2", "e5m2"),
    _mx("mxfp6", "e2m3"),
    _mx("mxfp6-e3m2", "e3m2"),
    _mx("mxfp4", "e2m1"),
    BlockFormat(name="mxint8", element=integer(8, fraction_bits=6), scale=_BY_NAME["e8m0"], block=32, source=_OCP_MX),
    _nvfp4("nvfp4", "NVIDIA, Introducing NVFP4 (2025-06): amax/6 in E4M3, over a float32 tensor scale amax/(6*448)"),
    _nvfp4("nvfp4-2d", "NVIDIA, arXiv:2509.25149, section 4.3: weights share a scale per 16 x 16", rows=16),
    _nvfp4(
        "nvfp4-4over6",
        "Four Over Six, arXiv:2512.02010: per block amax/6 or amax/4, by squared error; tensor scale amax/(6*256)",
        rule="four-over-six",
        scale_top=256.0,
    ),
    block_floating_point(4, 16, "msfp12", _MSFP),
    block_floating_point(8, 16, "msfp16", _MSFP),
    block_floating_point(4, 32),
    block_floating_point(8, 32),
    *(grouped(element, group) for element in ("int4", "uint4", "int8") for group in (32, 64, 128)),
    grouped("nf4", 64, "f32"),
)

#: name -> row, scalar formats first. Read-only.
FORMATS: Mapping[str, Format | BlockFormat] = MappingProxyType({**_BY_NAME, **{row.name: row for row in _BLOCKS}})

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "fp64": "f64",
        "fp32": "f32",
        "fp16": "f16",
        "mxfp8-e4m3": "mxfp8",
        "mxfp6-e2m3": "mxfp6",
        "mxfp4-e2m1": "mxfp4",
    }
)


#: Parametric names: pattern -> the row it stands for. Rows of FORMATS come first.
FAMILIES: tuple[tuple[str, Callable[..., Format | BlockFormat]], ...] = (
    (
        r"binary(\d+)p(\d+)([su])([ef])",
        lambda k, p, sign, domain: p3109(int(k), int(p), signed=sign == "s", extended=domain == "e"),
    ),
    (
        r"(u?)int(\d+)(?:\.(\d+))?(-narrow)?",
        lambda u, n, f, narrow: integer(int(n), signed=not u, narrow=bool(narrow), fraction_bits=int(f or 0)),
    ),
    (r"(u?)e(\d+)m(\d+)(?:-finite|-bias(-?\d+))", free_float),
    (r"e(\d+)m(\d+)-ieee", lambda e, m: ieee_float(f"e{e}m{m}-ieee", int(e), int(m))),
    (r"bfp(\d+)-b(\d+)", lambda bits, block: block_floating_point(int(bits), int(block))),
    (r"(.+)-g(\d+)(?:-(f16|bf16|f32))?", lambda element, group, scale: grouped(element, int(group), scale or "f16")),
)


def _of_family(key: str) -> Format | BlockFormat | None:
    for pattern, build in FAMILIES:
        match = re.fullmatch(pattern, key)
        if match:
            return build(*match.groups())
    return None


def format(name: str | Format | BlockFormat) -> Format | BlockFormat:  # noqa: A001 - the field's word, used as fpsim.format
    """The row called `name` (case and the fp16/fp32/fp64 aliases are forgiven; a row passes through).

    Parametric names need no row: binary8p4se (any P3109 format), int8.4 (fixed point), int8-narrow (symmetric),
    e3m4-finite and e3m4-bias5 (no Inf or NaN, any bias), e6m9-ieee (with them, laid out as IEEE 754 does), bfp6-b16
    (block floating point), and any scalar format in groups, <element>-g<length>[-f16|-bf16|-f32]: int3-g128,
    e2m1-g32-bf16.

    Raises ValueError, naming the nearest row, for an unknown name.
    """
    if isinstance(name, Format | BlockFormat):
        return name
    key = str(name).lower()
    row = FORMATS.get(ALIASES.get(key, key)) or _of_family(key)
    if row is None:
        raise unknown("format", name, FORMATS)
    return row


def container(name: str | Format) -> Format:
    """The format whose codes hold `name`: float32 for the narrow accumulator e8m13, else the format itself."""
    row = scalar_format(name)
    return scalar_format(row.container) if row.container else row


def scalar_format(name: str | Format) -> Format:
    """`format`, for places where a block format makes no sense."""
    row = format(name)
    if isinstance(row, BlockFormat):
        raise ValueError(
            f"{row.name!r} is a block format; a scalar format is needed here, such as its element {row.element.name!r}"
        )
    return row
