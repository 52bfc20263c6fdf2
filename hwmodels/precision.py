"""What one operation runs in, and the shorthands (`"fp8"`, `"w4a16"`, ...) for a whole model.

`Precision` is the cost side of a `MatmulSpec`: stored types, accumulator, result type, and how activation scales come
about, because that decides which extra kernels run.  A shorthand means two things (see `SHORTHANDS`):

* on ONE operation, the kernel alone: operands already in the format, no activation quantization;
* on a WORKLOAD, a scheme: every eligible Linear (in and out features divisible by 16, at least 256 inputs) in the
  format, with the work that makes its activations; everything else in `rest`.

Anything with a method `precision_for(op) -> Precision` does in place of a shorthand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from fpsim.formats import BlockFormat, Format
from fpsim.formats import format as format_row

from ._names import choose
from .ops import Gemm, Op, Quantize

Granularity: TypeAlias = Literal["tensor", "token", "group"]
GRANULARITIES = ("tensor", "token", "group")
SCALE_BITS = 16  # a weight or activation scale outside a block format: one bf16 number


@lru_cache(maxsize=512)
def stored_bits(name: str) -> float:
    """Bits per stored element, block scales included; tf32 and its like are stored as float32."""
    if name in _PLAIN:
        return _PLAIN[name]
    row = format_row(name)
    if isinstance(row, Format) and row.kind == "float" and row.bits not in (4, 6, 8, 16, 32, 64):
        return 32.0
    return row.bits_per_element


_PLAIN = {
    "int64": 64.0,
    "int32": 32.0,
    "int16": 16.0,
    "bool": 8.0,
    "uint8": 8.0,
    "complex64": 64.0,
    "complex128": 128.0,
}


def accumulator_name(accumulator: object) -> str:
    """The name device rates are keyed by: a string as it is, a `fpsim` accumulator by the type it adds up in."""
    if isinstance(accumulator, str):
        return {"fp32": "f32", "fp16": "f16"}.get(accumulator, accumulator)
    output = getattr(accumulator, "output", None)
    if not isinstance(output, str):
        raise ValueError(
            f"accumulator {accumulator!r}; allowed: a name such as 'f32', 'f16', 'int32', or an fpsim kind"
        )
    return "f32" if output.startswith("e8m") else output


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of one operation, as cost sees it.

    weight, activation, output: stored formats (names of `fpsim.FORMATS`); accumulator: what products are added in.
    compute: operand type of the matrix engine where it is not the stored one ("tf32" on float32 data).
    dynamic: activation scales are found at run time; granularity: one per tensor, per token (row) or per `group`.
    quantized: activations arrive in `output` and must be cast first (None: exactly when `activation` is narrower).
    weight_group: weights per scale beyond those of the format (0: one per tensor or channel, not counted).
    """

    weight: str = "bf16"
    activation: str = "bf16"
    accumulator: str = "f32"
    output: str = "bf16"
    dynamic: bool = False
    compute: str = ""
    granularity: Granularity = "tensor"
    group: int = 0
    weight_group: int = 0
    quantized: bool | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "activation", "output"):
            object.__setattr__(self, name, format_row(getattr(self, name)).name)
        if self.compute:
            object.__setattr__(self, "compute", format_row(self.compute).name)
        object.__setattr__(self, "accumulator", accumulator_name(self.accumulator))
        choose("granularity", self.granularity, GRANULARITIES)

    @property
    def needs_quantize(self) -> bool:
        """Whether a cast kernel runs before a product in this precision."""
        if self.quantized is not None:
            return self.quantized
        return stored_bits(self.activation) < stored_bits(self.output)

    @property
    def weight_bits(self) -> float:
        """Bits per stored weight, its share of scales included."""
        return stored_bits(self.weight) + (SCALE_BITS / self.weight_group if self.weight_group else 0.0)

    @property
    def activation_bits(self) -> float:
        """Bits per activation operand, its share of scales included."""
        return stored_bits(self.activation) + (SCALE_BITS / self.group if self.group else 0.0)

    def operands(self) -> tuple[str, str]:
        """(activation, weight) operand types asked of the matrix engine."""
        return (self.compute or self.activation, self.compute or self.weight)

    def widths(self, op: Op) -> tuple[float, float, float]:
        """Bits per (weight, read, written) element of `op`."""
        out = stored_bits(op.out_dtype or op.dtype or self.output)
        if isinstance(op, Quantize):
            scale = SCALE_BITS / op.group if op.group and not isinstance(format_row(op.format), BlockFormat) else 0.0
            return 0.0, stored_bits(op.dtype or self.output), stored_bits(op.format) + scale
        if op.MATMUL:
            if op.dtype:
                wide = stored_bits(op.dtype)
                return wide, wide, out
            return self.weight_bits, self.activation_bits, out
        return stored_bits(self.output), stored_bits(op.dtype or self.output), out

    @property
    def label(self) -> str:
        """'e4m3 x e4m3 + f32 -> bf16', for notes and tables."""
        a, w = self.operands()
        return f"{a} x {w} + {self.accumulator} -> {self.output}"


@runtime_checkable
class PrecisionMap(Protocol):
    """A scheme, as seen from here: it names the precision of each operation."""

    def precision_for(self, op: Op) -> Precision: ...


PrecisionLike: TypeAlias = str | Precision | PrecisionMap


@dataclass(frozen=True, kw_only=True)
class Shorthand:
    """One row of the table: Linears that qualify run in `linear`, everything else in `rest`."""

    name: str
    linear: Precision
    rest: Precision = field(default_factory=Precision)
    everything: bool = False  # the whole model runs in `linear`: no eligibility rule
    means: str = ""

    def precision_for(self, op: Op) -> Precision:
        return self.linear if self.everything or eligible(op) else self.rest


def eligible(op: Op) -> bool:
    """Whether a scheme's low-precision kernels take this Linear: in and out divisible by 16, at least 256 inputs."""
    return isinstance(op, Gemm) and op.parameter and op.k % 16 == 0 and op.n % 16 == 0 and op.k >= 256


def _whole(name: str, stored: str, compute: str = "", means: str = "") -> Shorthand:
    linear = Precision(weight=stored, activation=stored, output=stored, compute=compute)
    return Shorthand(name=name, linear=linear, rest=linear, everything=True, means=means)


def _linears(name: str, means: str, **kwargs: object) -> Shorthand:
    return Shorthand(name=name, linear=Precision(**kwargs), means=means)  # type: ignore[arg-type]


_ROWS = (
    _whole("fp32", "f32", means="everything in float32 on the ordinary float units"),
    _whole("tf32", "f32", "tf32", means="float32 storage, TF32 matrix engine"),
    _whole("bf16", "bf16", means="everything in bfloat16, float32 accumulation"),
    _whole("fp16", "f16", means="everything in float16, float32 accumulation"),
    _linears("fp8", "E4M3, static per-tensor scales", weight="e4m3", activation="e4m3"),
    _linears(
        "fp8-dynamic", "E4M3, per-tensor scales found at run time", weight="e4m3", activation="e4m3", dynamic=True
    ),
    _linears(
        "fp8-block",
        "E4M3, activation scales per 128 of a row, weight scales per 128 x 128",
        weight="e4m3",
        activation="e4m3",
        dynamic=True,
        granularity="group",
        group=128,
        weight_group=128 * 128,
    ),
    _linears("int8", "INT8, static scales", weight="int8", activation="int8", accumulator="int32"),
    _linears(
        "int8-dynamic",
        "INT8, one scale per token found at run time",
        weight="int8",
        activation="int8",
        accumulator="int32",
        dynamic=True,
        granularity="token",
    ),
    _linears("mxfp8", "MXFP8 blocks of 32", weight="mxfp8", activation="mxfp8", dynamic=True, granularity="group"),
    _linears("mxfp6", "MXFP6 blocks of 32", weight="mxfp6", activation="mxfp6", dynamic=True, granularity="group"),
    _linears("mxfp4", "MXFP4 blocks of 32", weight="mxfp4", activation="mxfp4", dynamic=True, granularity="group"),
    _linears("nvfp4", "NVFP4 blocks of 16", weight="nvfp4", activation="nvfp4", dynamic=True, granularity="group"),
    _linears("w8a16", "INT8 weights, bf16 activations", weight="int8"),
    _linears("w8a16-fp", "E4M3 weights, bf16 activations", weight="e4m3"),
    _linears("w4a16", "INT4 weights in groups of 128, bf16 activations", weight="int4", weight_group=128),
    _linears(
        "w4a8-fp", "E2M1 weights in groups of 128, E4M3 activations", weight="e2m1", activation="e4m3", weight_group=128
    ),
    _linears(
        "w4a8",
        "INT4 weights in groups of 128, INT8 activations",
        weight="int4",
        activation="int8",
        accumulator="int32",
        weight_group=128,
    ),
    _linears("int4", "INT4 weights and activations", weight="int4", activation="int4", accumulator="int32"),
)


def _table(rows: tuple[Shorthand, ...]) -> Mapping[str, Shorthand]:
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"a shorthand is in the table twice: {sorted(n for n in names if names.count(n) > 1)}")
    return MappingProxyType({row.name: row for row in rows})


SHORTHANDS = _table(_ROWS)
_ALIASES = {"f32": "fp32", "f16": "fp16", "e4m3": "fp8"}


def precision_map(precision: PrecisionLike) -> PrecisionMap:
    """The scheme meant by a shorthand, a `Precision` (every operation runs in it) or a scheme (itself).

    Raises ValueError, naming the nearest shorthand, for an unknown one.
    """
    if isinstance(precision, str):
        name = _ALIASES.get(precision.lower(), precision.lower())
        return SHORTHANDS[choose("precision", name, SHORTHANDS)]
    if isinstance(precision, Precision):
        return Shorthand(name=precision.label, linear=precision, rest=precision, everything=True)
    if isinstance(precision, PrecisionMap):
        return precision
    known = ", ".join(SHORTHANDS)
    raise ValueError(f"precision {precision!r}; allowed: a Precision, an object with precision_for(op), or {known}")


def kernel_precision(precision: PrecisionLike, op: Op) -> Precision:
    """The precision of one operation on its own: a shorthand names the format, whatever the shape."""
    row = precision_map(precision)
    if isinstance(row, Shorthand):
        return row.linear if op.MATMUL else row.rest
    return row.precision_for(op)
