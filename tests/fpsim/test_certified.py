"""Certificates that nothing is truncated: the same bits as the truncating kernels, and none given one step too far."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim._cpu.fused import FusedProduct
from fpsim._cpu.steps import grouped_operands
from fpsim._kernels import products
from fpsim.gemm import RESULT_DTYPES
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, bits, cancelling

TCGEN05 = fpsim.engine("blackwell/tcgen05", "e4m3")
PAIRS = [("e4m3", "e4m3"), ("e2m1", "e2m1"), ("e2m3", "e4m3"), ("e3m2", "e2m3"), ("e3m2", "e2m1")]


def both(a: np.ndarray, b: np.ndarray, spec: MatmulSpec, c: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """The product with certificates, checked against the scalar kernel; and how many steps used one."""
    shape = (len(a), b.shape[1])
    start = np.zeros(shape, np.float32) if c is None else c
    product = FusedProduct(a, b, spec, spec.accumulator)
    got, plain = start.copy().view(np.int32), start.copy().view(np.int32)
    product.run(got, 0, a.shape[1])
    scalar = FusedProduct(a, b, spec, spec.accumulator)
    scalar.vector = None
    scalar.run(plain, 0, a.shape[1])
    assert_same_bits(got, plain, f"{spec.a.name} {spec.b.name}")
    return got.view(np.float32), product.certified_steps


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_certified_products_have_the_same_bits(left: str, right: str, kind: str) -> None:
    spec = fpsim.engine("blackwell/tcgen05", left, right)
    rng = np.random.default_rng(3)
    a = DISTRIBUTIONS[kind](rng, spec.a, (5, 160))
    b = DISTRIBUTIONS[kind](rng, spec.b, (160, 150))
    _, used = both(a, b, spec)
    _, cancelled = both(*cancelling(a, b, spec.a), spec)
    if kind == "normal":
        assert used == cancelled == 5 * 2 * 5  # rows, tiles of 128 columns, steps: all of them
    for scale in (1.0, 2.0**-3, 1e-9, 2.0**20):
        both(a, b, spec, (rng.standard_normal((5, 150)) * scale).astype(np.float32))
    whole = rng.integers(-99, 99, (5, 150)).astype(np.float32)
    whole[0, :4] = np.nan, np.inf, -0.0, 2.0**-149
    both(a, b, spec, whole)


def unit_and_tops(top: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands whose products run from 2**-18, E4M3's smallest, to 2**top, in one step."""
    a, b = np.zeros((1, 32)), np.zeros((32, 1))
    a[0, 0], b[0, 0] = 2.0**-9, 2.0**-9
    a[0, 1], b[1, 0] = 2.0 ** (top // 2), 2.0 ** (top - top // 2)
    return fpsim.encode(a, "e4m3"), fpsim.encode(b, "e4m3")


def test_the_boundary_of_the_exponents() -> None:
    """U = -18 and F = 20: products up to 2**2 certify, and keep their last bit; with 2**3 it is lost."""
    spec = replace(TCGEN05, accumulator=fpsim.FusedDot(32, 20))
    for top, certified in ((2, 1), (3, 0)):
        a, b = unit_and_tops(top)
        # 2**top + 2**-18: let c cancel 2**top to see what was dropped
        for start, want in ((0.0, 2.0**top + 2.0**-18 * certified), (-(2.0**top), 2.0**-18 * certified)):
            c = np.full((1, 1), start, np.float32)
            got, used = both(a, b, spec, c)
            assert used == certified
            assert got[0, 0] == want
            assert_same_bits(got, fpsim.matmul(a, b, spec, c=c, backend="reference"))


def test_the_boundary_of_float32_sums() -> None:
    """Norms whose product is below 2**6 leave every sum of multiples of 2**-18 in 24 bits; at 2**6 it is not tried."""
    for top, certified in ((5, 1), (6, 0)):
        a, b = unit_and_tops(top)
        got, used = both(a, b, TCGEN05)
        assert used == certified
        assert_same_bits(got, fpsim.matmul(a, b, TCGEN05, backend="reference"))


def test_the_boundary_of_c() -> None:
    """|c| below 2**8 certifies; at 2**8 a product of 2**-18 is dropped; so is a c that is no multiple of 2**-18."""
    a, b = unit_and_tops(0)
    below, at = np.nextafter(np.float32(256), np.float32(0)), np.float32(256)
    for start, certified in ((below, 1), (at, 0), (-below, 1), (-at, 0), (2.0**-18, 1), (2.0**-19, 0), (1.5e-45, 0)):
        c = np.full((1, 1), start, np.float32)
        got, used = both(a, b, TCGEN05, c)
        assert used == certified, start
        assert_same_bits(got, fpsim.matmul(a, b, TCGEN05, c=c, backend="reference"))


def test_a_certificate_ends_where_c_outgrows_it() -> None:
    """Steps of 31 ones and one 2**-18: |c| passes 256 in the ninth step, and the tenth is truncated."""
    a, b = np.ones((1, 352)), np.ones((352, 3))
    a[0, ::32], b[::32] = 2.0**-9, 2.0**-9
    b[:, 1] *= -1
    codes = fpsim.encode(a, "e4m3"), fpsim.encode(b, "e4m3")
    got, used = both(*codes, TCGEN05)
    assert used == 9
    assert_same_bits(got, fpsim.matmul(*codes, TCGEN05, backend="reference"))


def test_sums_that_float32_cannot_hold_are_not_formed_in_it() -> None:
    """One step of norms above 2**6 (U = -18): 31 products of 16 beside 2**-18. Truncated as usual, certificate kept."""
    a, b = np.zeros((1, 96)), np.zeros((96, 1))
    a[0, :32], b[:32, 0] = 4.0, 4.0
    a[0, 1], b[1, 0], a[0, 40], b[40, 0] = -4.0, 4.0, 1.0, -0.5
    a[0, 0], b[0, 0] = 2.0**-9, 2.0**-9
    a[0, 64:], b[64:, 0] = 1.0, 0.25
    b[:32, 0] *= np.where(np.arange(32) % 2, 1, -1)  # cancels: c stays small
    codes = fpsim.encode(a, "e4m3"), fpsim.encode(b, "e4m3")
    got, used = both(*codes, TCGEN05)
    assert used == 2
    assert_same_bits(got, fpsim.matmul(*codes, TCGEN05, backend="reference"))


@pytest.mark.parametrize("seed", range(6))
def test_random_boundaries_equal_the_reference(seed: int) -> None:
    """Operands whose products straddle the certificate's edge, with a c near its own edge."""
    rng = np.random.default_rng(seed)
    spec = replace(TCGEN05, accumulator=fpsim.FusedDot(16, 14, zero_exponent=(None, -133, 3)[seed % 3]))
    a = fpsim.encode(rng.choice([1, -1], (4, 48)) * 2.0 ** rng.integers(-5, 3, (4, 48)) * 1.25, "e4m3")
    b = fpsim.encode(rng.choice([1, -1], (48, 20)) * 2.0 ** rng.integers(-4, 1, (48, 20)), "e4m3")
    c = (rng.integers(-8, 9, (4, 20)) * 2.0 ** rng.integers(-12, 4, (4, 20))).astype(np.float32)
    got, _ = both(a, b, spec, c)
    want = fpsim.matmul(a, b, spec, c=c, backend="reference")
    assert want.dtype == RESULT_DTYPES["f32"]
    assert_same_bits(bits(got), bits(want))


def test_scaled_values_do_not_certify_and_are_right_all_the_same() -> None:
    rng = np.random.default_rng(9)
    a, b = (fpsim.encode(rng.standard_normal(shape) * 100, "e4m3") for shape in ((6, 256), (256, 40)))
    _, used = both(a, b, TCGEN05)
    assert used == 0


# -- block-scaled FP4 ---------------------------------------------------------------------------------------------


def fp4(scale: str, block: int) -> MatmulSpec:
    return fpsim.engine("rtx-blackwell/mma-mxf4nvf4", a="e2m1", b="e2m1", out="f32", scale=scale, block=block)


def grouped_both(
    a: np.ndarray, b: np.ndarray, spec: MatmulSpec, sa: np.ndarray, sb: np.ndarray, c: np.ndarray | None = None
) -> float:
    """Check the product against the scalar kernel; the share of rows and tiles that were certified."""
    module = importlib.import_module("fpsim._cpu.grouped")
    shape = (len(a), b.shape[1])
    start = np.zeros(shape, np.float32) if c is None else c
    plain = start.copy().view(np.int32)
    products.grouped(*grouped_operands(a, b, spec, spec.accumulator, (sa, sb)), plain, 0, len(a))
    got = fpsim.matmul(a, b, spec, c=start, a_scale=sa, b_scale=sb)
    assert_same_bits(got.view(np.int32), plain, spec.scale)
    held = start.copy().view(np.int32)
    return float(module._certified(a, b, held, spec, spec.accumulator, (sa, sb)).mean())


@pytest.mark.parametrize(("scale", "block"), [("ue4m3", 16), ("e8m0", 32), ("e8m0", 16)])
def test_block_scaled_fp4_has_the_same_bits(scale: str, block: int) -> None:
    rng, spec = np.random.default_rng(5), fp4(scale, block)
    for depth, columns in ((192, 150), (100, 3)):
        blocks = -(-depth // block)
        a, b = (rng.integers(0, 16, shape).astype(np.uint8) for shape in ((7, depth), (depth, columns)))
        a[1], a[2, :64] = 0, 0
        low, high = {"ue4m3": (0x68, 0x78), "e8m0": (126, 129)}[scale]
        near = [rng.integers(low, high, s).astype(np.uint8) for s in ((7, blocks), (blocks, columns))]
        assert grouped_both(a, b, spec, *near) == 1.0
        near[0][3, 0], near[1][1, 1] = 0, 0  # ue4m3: zero; e8m0: 2**-127
        grouped_both(a, b, spec, *near)
        for c in (rng.standard_normal((7, columns)) * 1e3, rng.integers(-9, 9, (7, columns)) * 64.0):
            grouped_both(a, b, spec, *near, c.astype(np.float32))
        wild = [rng.integers(0, 256, s).astype(np.uint8) for s in ((7, blocks), (blocks, columns))]
        grouped_both(a, b, spec, *wild)  # NaN among them
        for part in wild:
            part[part & 0x7F == 0x7F] = 1
        grouped_both(a, b, spec, *wild)


def test_the_boundary_of_the_scales() -> None:
    """Groups whose scales' exponents differ: with the last bit at 2**(e - 2 - 6), F = 35 holds a spread of 27."""
    spec = fp4("ue4m3", 16)
    a, b = np.zeros((1, 64), np.uint8), np.zeros((64, 1), np.uint8)
    a[0, 0], b[0, 0], a[0, 16], b[16, 0] = 1, 1, 2, 2  # 0.5 * 0.5, in the small group; 1 * 1 in the large one
    small = 0x09  # 1.125 * 2**-6: the square has its last bit at 2**(-12 - 6)
    for left, right, spread in ((0x70, 0x70, 26), (0x78, 0x70, 27), (0x78, 0x78, 28)):
        sa, sb = np.full((1, 4), left, np.uint8), np.full((4, 1), right, np.uint8)
        sa[0, 0] = sb[0, 0] = small
        top = fpsim.decode(np.array([left, right], np.uint8), "ue4m3").prod()
        c = np.full((1, 1), -top, np.float32)
        share = grouped_both(a, b, spec, sa, sb, c)
        got = fpsim.matmul(a, b, spec, c=c, a_scale=sa, b_scale=sb)
        assert_same_bits(got, fpsim.matmul(a, b, spec, c=c, a_scale=sa, b_scale=sb, backend="reference"))
        exact = 0.25 * (1.125 * 2.0**-6) ** 2
        assert (got.item() == exact) == (spread <= 27)
        assert share == (spread <= 27)


def test_block_scaled_fp8_as_vectors_has_the_same_bits() -> None:
    """Scales move values and exponents; random ones too, where rows and columns leave what float32 can scale."""
    rng = np.random.default_rng(6)
    spec = fpsim.engine("rtx-blackwell/mma-mxf8f6f4", a="e4m3", b="e5m2", out="f32", scale="e8m0", block=32)
    a, b = DISTRIBUTIONS["bits"](rng, spec.a, (6, 70)), DISTRIBUTIONS["normal"](rng, spec.b, (70, 33))
    for low, high in ((124, 131), (0, 256), (60, 200)):
        scales = tuple(rng.integers(low, high, shape).astype(np.uint8) for shape in ((6, 3), (3, 33)))
        got, plain = (rng.standard_normal((6, 33)).astype(np.float32).view(np.int32) for _ in range(2))
        plain[:] = got
        product = FusedProduct(a, b, spec, spec.accumulator, scales)
        assert product.vector is not None
        product.run(got, 0, 70)
        product.vector = None
        product.run(plain, 0, 70)
        assert_same_bits(got, plain, f"{low} {high}")


CODES = st.integers(0, 255)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_codes_and_any_truncation(data: st.DataObject) -> None:
    """Few distinct codes, so that certificates hold, end and fail; any fraction bits, step and start."""
    few = data.draw(st.lists(CODES.filter(lambda c: c & 0x7F != 0x7F), min_size=1, max_size=4))
    depth = data.draw(st.integers(1, 40))
    picked = st.lists(st.sampled_from(few), min_size=depth, max_size=depth)
    a = np.array([data.draw(picked) for _ in range(2)], np.uint8)
    b = np.array([data.draw(picked) for _ in range(2)], np.uint8).T
    kind = fpsim.FusedDot(data.draw(st.integers(1, 20)), data.draw(st.integers(12, 26)))
    spec = replace(TCGEN05, accumulator=kind)
    start = data.draw(st.sampled_from([0.0, 1.0, -(2.0**-18), 300.0, 2.0**-30, 1e30]))
    c = np.full((2, 2), start, np.float32)
    got, _ = both(a, np.ascontiguousarray(b), spec, c)
    assert_same_bits(got, fpsim.matmul(a, b, spec, c=c, backend="reference"))
