"""Dot products in steps of their own kind on the CPU: exact, two-stage (CDNA3) and grouped (block-scaled FP4)."""

import numpy as np

from fpsim._cpu.plans import sum_plan, top_exponent
from fpsim._cpu.rows import Scales, rows, words
from fpsim._kernels import products
from fpsim._kernels.accumulate import INFINITE, NAN, NO_FLOOR, ZERO, Grouped, TwoStage
from fpsim._kernels.exact import Exact
from fpsim._operands import unpack, unpack_wide
from fpsim.accumulators import FusedDot, GroupedDot, TwoStageDot
from fpsim.codec import Array, decode
from fpsim.formats import Format, container, scalar_format
from fpsim.spec import MatmulSpec


def exact(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None = None) -> None:
    sa, ea, sb, eb, plan, limbs = exact_operands(a, b, spec, kind, scales)
    rows(lambda i, j: products.exact(sa, ea, sb, eb, plan, limbs, words(c), i, j), c, a.shape[1])


def exact_operands(
    a: Array, b: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None
) -> tuple[Array, Array, Array, Array, Exact, int]:
    """Significands and exponents of both sides, the plan, and how many limbs a sum takes."""
    a, left = _as_floats(a, spec.a)
    b, right = _as_floats(b, spec.b)
    spec = MatmulSpec(left, right, kind, "", spec.scale, spec.block)
    plan, limbs = exact_plan(spec, kind, a.shape[1])
    take = unpack_wide if plan.wide else unpack
    sa, ea = take(a, left)
    sb, eb = take(np.ascontiguousarray(b.T), right)
    if scales is not None:
        ea, eb = scaled_exponents(ea, scales[0], spec), scaled_exponents(eb, np.ascontiguousarray(scales[1].T), spec)
    return sa, ea, sb, eb, plan, limbs


def exact_plan(spec: MatmulSpec, kind: FusedDot, depth: int) -> tuple[Exact, int]:
    """The plan of a dot product of floats that drops nothing, and how many limbs its sum takes."""
    a, b, held = spec.a, spec.b, container(kind.output)
    if a.kind != "float" or b.kind != "float":
        raise ValueError(f"an exact sum takes float operands here, got {a.name} x {b.name}")
    bits = a.mantissa_bits + b.mantissa_bits
    reach = 256 if spec.scale else 0  # two E8M0 scales: 2**-127 to 2**127 each
    origin = min(a.minimum_exponent + b.minimum_exponent - bits - reach, held.minimum_exponent - held.mantissa_bits)
    top = max(top_exponent(a) + top_exponent(b) + 2 + reach, top_exponent(held) + 1)
    wide = max(a.mantissa_bits, b.mantissa_bits) > 23
    plan = Exact(kind.terms or max(depth, 1), origin, bits, wide, sum_plan(kind.output, kind.rounding))
    return plan, (top - origin + 64 + depth.bit_length()) // 32 + 3


def _as_floats(codes: Array, row: Format) -> tuple[Array, Format]:
    """Codes of a float format; integers and codebooks become float32 or float64, exactly."""
    if row.kind == "float":
        return codes, row
    wide = scalar_format({"float32": "f32", "float64": "f64"}[row.value_dtype])
    return decode(codes, row).view(wide.code_dtype), wide


def scaled_exponents(exponents: Array, scales: Array, spec: MatmulSpec) -> Array:
    """Exponents with those of their block's power-of-two scale; a NaN scale makes NaN of the whole block."""
    _, powers = unpack(scales, scalar_format(spec.scale or "e8m0"))
    per_element = np.repeat(powers, spec.block or 1, axis=1)[:, : exponents.shape[1]]
    moved = np.where((exponents == ZERO) | (exponents >= INFINITE), exponents, exponents + per_element)
    return np.where(per_element == NAN, NAN, moved).astype(np.int16)


def two_stage(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: TwoStageDot, scales: Scales | None) -> None:
    del scales
    plan = two_stage_plan(spec, kind)
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    rows(lambda i, j: products.two_stage(sa, ea, sb, eb, plan, words(c), i, j), c, a.shape[1])


def two_stage_plan(spec: MatmulSpec, kind: TwoStageDot) -> TwoStage:
    """A TwoStageDot flattened; ValueError for operands it does not take."""
    bits = spec.a.mantissa_bits + spec.b.mantissa_bits
    if spec.a.kind != "float" or spec.b.kind != "float" or bits > 24 or kind.terms > 64:
        raise ValueError(
            f"a TwoStageDot takes floats of at most 13 significant bits, got {spec.a.name} x {spec.b.name}"
        )
    return TwoStage(
        kind.terms, kind.fraction_bits, kind.sum_fraction_bits, kind.interleaved, bits, sum_plan(kind.output, "rne")
    )


def grouped_operands(
    a: Array, b: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None
) -> tuple[Array, Array, Array, Array, Array, Array, Grouped]:
    """Integers, and significands and exponents of the scales, of both sides; the plan."""
    if scales is None:
        raise ValueError("a GroupedDot needs scale codes: give matmul a_scale and b_scale")
    plan, points = grouped_plan(spec, kind)
    x = (decode(a, spec.a) * 2.0 ** points[0]).astype(np.int32)
    y = (decode(np.ascontiguousarray(b.T), spec.b) * 2.0 ** points[1]).astype(np.int32)
    scale = scalar_format(spec.scale or "")
    fa, ea = unpack(scales[0], scale)
    fb, eb = unpack(np.ascontiguousarray(scales[1].T), scale)
    return x, fa, ea, y, fb, eb, plan


def grouped_plan(spec: MatmulSpec, kind: GroupedDot) -> tuple[Grouped, tuple[int, int]]:
    """A GroupedDot flattened, and the binary points that make integers of the operands. ValueError for others."""
    if spec.scale is None or spec.block is None:
        raise ValueError("a GroupedDot needs scale codes: give the spec scale= and block=, and matmul a_scale, b_scale")
    if spec.block % kind.group or any(row.bits > 8 or row.nan != "none" for row in (spec.a, spec.b)):
        raise ValueError(f"a GroupedDot takes finite formats of at most 8 bits and blocks of whole groups, got {spec}")
    points = (spec.a.mantissa_bits - spec.a.minimum_exponent, spec.b.mantissa_bits - spec.b.minimum_exponent)
    plan = Grouped(
        kind.group,
        kind.groups,
        kind.fraction_bits,
        NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent,
        sum(points) + 2 * scalar_format(spec.scale).mantissa_bits,
        spec.block,
        sum_plan(kind.output, kind.rounding),
    )
    return plan, points
