"""Dot products in steps of their own kind on the CPU: exact, two-stage (CDNA3) and grouped (block-scaled FP4)."""

import numpy as np

from fpsim._cpu.plans import sum_plan, top_exponent
from fpsim._cpu.rows import Scales, rows
from fpsim._kernels import products
from fpsim._kernels.accumulate import NO_FLOOR, Exact, Grouped, TwoStage
from fpsim._operands import unpack
from fpsim.accumulators import FusedDot, GroupedDot, TwoStageDot
from fpsim.codec import Array, decode
from fpsim.formats import container, scalar_format
from fpsim.spec import MatmulSpec


def exact(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot) -> None:
    held = container(kind.output)
    if spec.a.kind != "float" or spec.b.kind != "float" or held.mantissa_bits > 23:
        raise ValueError(f"an exact FusedDot takes floats and gives at most f32, got {spec.a.name} x {spec.b.name}")
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    plan, limbs = exact_plan(spec, kind, a.shape[1])
    rows(lambda i, j: products.exact(sa, ea, sb, eb, plan, limbs, c, i, j), c, a.shape[1])


def exact_plan(spec: MatmulSpec, kind: FusedDot, depth: int) -> tuple[Exact, int]:
    """The plan of a dot product that drops nothing, and how many limbs its sum takes."""
    held, bits = container(kind.output), spec.a.mantissa_bits + spec.b.mantissa_bits
    origin = min(spec.a.minimum_exponent + spec.b.minimum_exponent - bits, held.minimum_exponent - held.mantissa_bits)
    top = max(top_exponent(spec.a) + top_exponent(spec.b) + 2, held.bias + 1)
    plan = Exact(kind.terms or max(depth, 1), origin, bits, sum_plan(kind.output, kind.rounding))
    return plan, (top - origin + 64 + depth.bit_length()) // 32 + 2


def two_stage(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: TwoStageDot, scales: Scales | None) -> None:
    del scales
    plan = two_stage_plan(spec, kind)
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    rows(lambda i, j: products.two_stage(sa, ea, sb, eb, plan, c, i, j), c, a.shape[1])


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


def grouped(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None) -> None:
    if scales is None:
        raise ValueError("a GroupedDot needs scale codes: give matmul a_scale and b_scale")
    plan, points = grouped_plan(spec, kind)
    x = (decode(a, spec.a) * 2.0 ** points[0]).astype(np.int32)
    y = (decode(np.ascontiguousarray(b.T), spec.b) * 2.0 ** points[1]).astype(np.int32)
    scale = scalar_format(spec.scale or "")
    fa, ea = unpack(scales[0], scale)
    fb, eb = unpack(np.ascontiguousarray(scales[1].T), scale)
    rows(lambda i, j: products.grouped(x, fa, ea, y, fb, eb, plan, c, i, j), c, a.shape[1])


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
