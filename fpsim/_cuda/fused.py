"""Fused dot products on the device, and what wraps them: promotions and split K.

Large products run in register tiles (`_kernels.cuda_tiles`); what those leave, and batches of small ones such as the
tiles of single instructions, run one thread per output. Both compute the bits of the CPU backend.
"""

from typing import Any

import numpy as np

from fpsim._cpu.plans import fused_plan, small_exponents, sum_plan
from fpsim._cuda.arrays import Codes, launch, new, zeros
from fpsim._cuda.operands import Side, empty_table, floats, powers
from fpsim._kernels import cuda_products
from fpsim._kernels.accumulate import INFINITE
from fpsim._kernels.cuda_tiles import THREADS, TILE, Tile, tile_kernel
from fpsim.accumulators import FusedDot, Promoted, SplitK
from fpsim.formats import container, scalar_format
from fpsim.reference import ENGINE_NAN, split_ranges
from fpsim.spec import MatmulSpec

_STEPS = (4, 8, 16, 32)  #: terms per step that the tile kernel is built for: its shared memory holds one step
_FEWEST = 32  #: rows and columns below which a tile would be mostly empty

Scales = tuple[Codes, Codes]


class FusedProduct:
    """The operands of a fused dot product, on the device; `run` chains over a range of k."""

    def __init__(self, left: Side, right: Side, kind: FusedDot) -> None:
        self.left, self.right = left, right
        rows = [scalar_format(side.converted) if side.converted else side.row for side in (left, right)]
        self.plan = fused_plan(kind, rows[0], rows[1], left.terms)
        held, row = container(kind.output), scalar_format(kind.output)
        self.coded = not (kind.rounding == "rz" and held.name == "f32" and row.exponent_bits == 8)
        low = self.plan.fraction_bits - 125
        small = left.powers is None and small_exponents(rows[0], rows[1])
        self.limits = (-INFINITE, INFINITE - 1) if small else (low // 2, 62)
        self.tile = Tile(self.plan, low, -(1 << (23 - row.mantissa_bits)))
        self.wide = (self.plan.terms + 1) << (self.plan.fraction_bits + 2) > 1 << 24
        self.tiled = (
            self.plan.terms in _STEPS
            and self.plan.fraction_bits <= 26
            and self.plan.product_fraction_bits <= 22
            and min(left.codes.shape[1], right.codes.shape[1]) >= _FEWEST
            and left.codes.shape[0] < 1 << 16
        )
        self._tiles: tuple[Any, ...] | None = None
        self._unpacked: tuple[Any, ...] | None = None

    def run(self, c: Any, begin: int, end: int, every: int = 0) -> None:
        """Chain the steps of k in begin .. end onto c, unsigned codes (T, M, N), in place.

        every > 0: promotions, in the arithmetic of the chain's own container.
        """
        aligned = (begin % self.plan.terms, every % self.plan.terms) == (0, 0) and not (self.coded and every)
        if self.tiled and aligned and (end % self.plan.terms == 0 or end == self.left.codes.shape[2]):
            self._run_tiles(c, begin, end, every)
        else:
            self._run_outputs(c, c, empty_table("int8", 3), begin, end, every)

    def _run_outputs(self, start: Any, c: Any, redo: Any, begin: int, end: int, every: int) -> None:
        if self._unpacked is None:
            self._unpacked = (*self.left.unpacked(), *self.right.unpacked())
        launch(cuda_products.fused, c.size, *self._unpacked, start, redo, self.plan, begin, end, every, c)

    def _run_tiles(self, c: Any, begin: int, end: int, every: int) -> None:
        if self._tiles is None:
            self._tiles = (*self.left.tiles(self.limits), *self.right.tiles(self.limits))
        start = new(c.shape, c.dtype)
        start.copy_to_device(c)
        redo, any_redo = zeros(c.shape, np.int8), zeros((1,), np.int8)
        first, out = (start, c) if self.coded else (start.view(np.float32), c.view(np.float32))
        grid = (-(-c.shape[2] // TILE), -(-c.shape[1] // TILE), c.shape[0])
        run = tile_kernel(self.plan.terms, self.wide, self.coded, every > 0)
        span = (np.uint32(begin), np.uint32(-(-end // self.plan.terms) * self.plan.terms), np.uint32(every or 1))
        run[grid, THREADS](*self._tiles, first, out, redo, any_redo, self.tile, *span)
        if any_redo.copy_to_host()[0]:
            self._run_outputs(start, c, redo, begin, end, every)


def fused(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    depth = a.shape[2]
    if kind.fraction_bits is None:
        raise ValueError(f"backend='cuda' runs an exact FusedDot only on its own, got {kind}")
    _product(a, b, spec, kind, scales).run(c, 0, depth)


def promoted(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: Promoted, scales: Scales | None) -> None:
    inner = kind.inner
    if not isinstance(inner, FusedDot) or not _adds_its_own(kind, inner):
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    product = _product(a, b, spec, inner, None, kind)
    depth = product.left.order.size
    if not kind.scaled:
        product.run(c, 0, depth, kind.every)
        return
    if scales is None:
        raise ValueError("this engine scales every promotion: a_scale (M, groups) and b_scale (groups, N) are needed")
    left, right = floats(scales[0]), floats(scales[1].transposed())
    for group, start in enumerate(range(0, depth, kind.every)):
        part = zeros(c.shape, c.dtype)
        product.run(part, start, min(start + kind.every, depth))
        launch(cuda_products.add_scaled, c.size, c, part, left, right, group, ENGINE_NAN["f32"])


def split_k(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: SplitK, scales: Scales | None) -> None:
    outer = kind.inner if isinstance(kind.inner, Promoted) else None
    inner, every = (kind.inner, 0) if outer is None else (outer.inner, outer.every)
    changed = outer is not None and (outer.order != "ascending" or outer.scaled or outer.operands != "")
    if (
        not isinstance(inner, FusedDot)
        or not inner.terms
        or kind.tile % inner.terms
        or scales is not None
        or changed
        or container(kind.output).name not in ("f32", "f16")
        or (outer is not None and not _adds_its_own(outer, inner))
    ):
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    product = _product(a, b, spec, inner, None)
    plan = sum_plan(container(kind.output).name, "rne")
    for start, stop in split_ranges(a.shape[2], kind.splits, kind.tile):
        part = zeros(c.shape, c.dtype)
        product.run(part, start, stop, every)
        launch(cuda_products.add, c.size, c, part, plan)


def _adds_its_own(kind: Promoted, inner: FusedDot) -> bool:
    """Whether promotions are IEEE additions, to nearest even, in the inner chain's own container, at whole steps."""
    return (
        inner.fraction_bits is not None
        and kind.output in ("f32", "f16")
        and container(inner.output).name == kind.output
        and kind.rounding == "rne"
        and bool(inner.terms)
        and kind.every % (inner.terms or 1) == 0
    )


def _product(
    a: Codes, b: Codes, spec: MatmulSpec, kind: FusedDot, scales: Scales | None, outer: Promoted | None = None
) -> FusedProduct:
    terms = kind.terms or max(a.shape[2], 1)
    options: dict[str, Any] = {"terms": terms}
    if outer is not None:
        options |= {"reordered": outer.every if outer.order != "ascending" else 0, "converted": outer.operands}
    sides = []
    for codes, row, scale in (
        (a, spec.a, scales and scales[0]),
        (b.transposed(), spec.b, scales and scales[1].transposed()),
    ):
        more = {} if scale is None else {"powers": powers(scale, spec), "block": spec.block or 1}
        sides.append(Side(codes=codes, row=row, **options, **more))
    return FusedProduct(sides[0], sides[1], kind)
