"""Exact, two-stage and grouped dot products and fixed-point registers on the device, one thread per output."""

from typing import Any

from fpsim._cpu.fixed import check
from fpsim._cpu.fixed import plan as fixed_plan
from fpsim._cpu.steps import exact_plan, grouped_plan, two_stage_plan
from fpsim._cuda.arrays import Codes, launch
from fpsim._cuda.operands import Side, integers, values
from fpsim._kernels import cuda_products
from fpsim.accumulators import FixedPoint, FusedDot, GroupedDot, TwoStageDot
from fpsim.formats import container, scalar_format
from fpsim.spec import MatmulSpec

Scales = tuple[Codes, Codes]


def exact(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    del scales
    if spec.a.kind != "float" or spec.b.kind != "float" or container(kind.output).mantissa_bits > 23:
        raise ValueError(f"an exact FusedDot takes floats and gives at most f32, got {spec.a.name} x {spec.b.name}")
    plan, limbs = exact_plan(spec, kind, a.shape[2])
    launch(cuda_products.exact_kernel(limbs), c.size, *_unpacked(a, b, spec), plan, c)


def fixed(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: FixedPoint, scales: Scales | None) -> None:
    """Raises ValueError for registers and operands that float64 does not emulate."""
    del scales
    kind = kind.placed(spec.a, spec.b)
    check(spec, kind)
    x, y = values(a, spec.a), values(b.transposed(), spec.b)
    scale = 2.0**-spec.a.bias if spec.a.kind == "int" else 1.0, 2.0**-spec.b.bias if spec.b.kind == "int" else 1.0
    launch(cuda_products.fixed, c.size, x, y, scale[0] * scale[1] * 2.0 ** -(kind.lsb or 0), fixed_plan(kind), c)


def two_stage(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: TwoStageDot, scales: Scales | None) -> None:
    del scales
    plan = two_stage_plan(spec, kind)
    launch(cuda_products.two_stage, c.size, *_unpacked(a, b, spec), plan, c)


def grouped(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None) -> None:
    if scales is None:
        raise ValueError("a GroupedDot needs scale codes: give matmul a_scale and b_scale")
    plan, points = grouped_plan(spec, kind)
    row = scalar_format(spec.scale or "")
    sides = []
    for codes, operand, point, scale in (
        (a, spec.a, points[0], scales[0]),
        (b.transposed(), spec.b, points[1], scales[1].transposed()),
    ):
        sides += [integers(codes, operand, point), *Side(codes=scale, row=row, terms=1).unpacked()]
    launch(cuda_products.grouped, c.size, *sides, plan, c)


def _unpacked(a: Codes, b: Codes, spec: MatmulSpec) -> tuple[Any, ...]:
    left = Side(codes=a, row=spec.a, terms=1)
    right = Side(codes=b.transposed(), row=spec.b, terms=1)
    return (*left.unpacked(), *right.unpacked())
